"""A picture that generation starts from: image-to-image, and inpainting where a mask comes with it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from metalora.core.errors import UserError
from metalora.people.photos import load_photo


@dataclass(frozen=True)
class Start:
    """What is drawn over, at the size of the images to make."""

    image: Image.Image
    """RGB."""
    mask: Image.Image | None
    """L; white is drawn again, black stays. None: everything may change."""
    denoise: float
    """Share of the noise that is added before drawing, in (0, 1]: 1 keeps nothing."""

    @property
    def digest(self) -> str:
        """sha256 of the pixels of picture and mask."""
        parts = [self.image.tobytes(), b"" if self.mask is None else self.mask.tobytes()]
        return hashlib.sha256(b"|".join(parts)).hexdigest()


def load_start(image: Path, mask: Path | None, *, size: tuple[int, int], denoise: float, steps: int) -> Start:
    """Read a picture and a mask and cut both to the size of the images to make, around the middle.

    Args:
        mask: of the same width and height as the picture; anything brighter than half is drawn again.
        size: (height, width).
        steps: of sampling; `denoise` must leave one at least.

    Raises:
        UserError: an unreadable picture, a mask of another size or without white, a share that leaves nothing to do.
    """
    if not isinstance(denoise, int | float) or not 0 < denoise <= 1 or int(steps * denoise) < 1:
        raise UserError(
            "nothing would be drawn",
            expected=f"a share of the noise above {1 / steps:g} and at most 1",
            got=str(denoise),
            key="denoise",
        )
    pixels_HW3 = load_photo(image, key="init_image")
    fitted = ImageOps.fit(Image.fromarray(pixels_HW3), (size[1], size[0]), Image.Resampling.LANCZOS)
    if mask is None:
        return Start(fitted, None, denoise)
    mask_HW = load_photo(mask, key="mask").mean(axis=2) > 127.5
    if mask_HW.shape != pixels_HW3.shape[:2]:
        raise UserError(
            "the mask does not fit the picture",
            expected=f"{pixels_HW3.shape[1]} x {pixels_HW3.shape[0]} pixels",
            got=f"{mask_HW.shape[1]} x {mask_HW.shape[0]}",
            key="mask",
        )
    whole = Image.fromarray(mask_HW.astype(np.uint8) * 255)
    shades = np.asarray(ImageOps.fit(whole, (size[1], size[0]), Image.Resampling.BILINEAR))
    cut = Image.fromarray((shades > 127).astype(np.uint8) * 255)
    if not cut.getbbox():
        raise UserError("the mask leaves nothing to draw", expected="white where to draw", got="all black", key="mask")
    return Start(fitted, cut, denoise)
