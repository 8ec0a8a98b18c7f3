"""Pictures as participants get them: pixels alone, one size and one format for all models of a question."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from metalora.people.photos import load_photo

MEDIA_TYPE = "image/webp"
_LOSSLESS_UP_TO = 256
"""Small pictures are enlarged on the screen, where compression would show."""


@dataclass(frozen=True)
class Picture:
    """An encoded picture without any metadata."""

    data: bytes
    width: int
    height: int


def reference(path: Path, *, side: int, quality: int) -> Picture:
    """A reference photo, its longer side at most `side` pixels.

    Raises:
        UserError: not a readable picture.
    """
    image = Image.fromarray(load_photo(path, key="benchmark.root"))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return _encoded(image, quality=quality)


def candidates(paths: Sequence[Path], *, side: int, quality: int) -> tuple[Picture, ...]:
    """All generated pictures of one question, brought to the smallest one's width and height: size tells no model.

    Raises:
        UserError: one cannot be read.
    """
    images = [Image.fromarray(load_photo(path, key="images")) for path in paths]
    width, height = (min(image.size[axis] for image in images) for axis in (0, 1))
    scale = min(1.0, side / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    fitted = [i if i.size == size else ImageOps.fit(i, size, Image.Resampling.LANCZOS) for i in images]
    return tuple(_encoded(image, quality=quality) for image in fitted)


def _encoded(image: Image.Image, *, quality: int) -> Picture:
    buffer = io.BytesIO()
    lossless = max(image.size) <= _LOSSLESS_UP_TO
    image.save(
        buffer, "WEBP", lossless=lossless, quality=100 if lossless else quality, method=4, exif=b"", icc_profile=b""
    )
    return Picture(buffer.getvalue(), *image.size)
