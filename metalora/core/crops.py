"""The crops of Stage 2 (App. D): five aspect ratios times five sizes around a face, as plain arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass

from metalora.core.contracts import Box

ASPECT_RATIOS = ("16:9", "4:3", "1:1", "3:4", "9:16")
"""Width to height."""
SCALES = (1.5, 2.0, 2.5, 3.5, 4.5)
"""Shorter side of the crop in units of f_long, the longer side of the face box."""


@dataclass(frozen=True)
class CropBox:
    """A window of whole pixels, x0 y0 (inclusive) to x1 y1 (exclusive), always inside the photo.

    `scale` is the size that was asked for; where the photo cannot give it, the window is the largest there is.
    """

    x0: int
    y0: int
    x1: int
    y1: int
    aspect: str
    scale: float

    @property
    def width(self) -> int:
        """Pixels from left to right."""
        return self.x1 - self.x0

    @property
    def height(self) -> int:
        """Pixels from top to bottom."""
        return self.y1 - self.y0


def parse_aspect(aspect: str) -> tuple[int, int]:
    """ "16:9" to (16, 9): width, height."""
    width, height = aspect.split(":")
    return int(width), int(height)


def crop_boxes(
    image_hw: tuple[int, int],
    face: Box,
    *,
    aspect_ratios: Sequence[str] = ASPECT_RATIOS,
    scales: Sequence[float] = SCALES,
) -> list[CropBox]:
    """All distinct crops of a photo around a face (App. D), in the order of the ratios, then of the sizes.

    The shorter side is f_long times the scale. Where the photo has no room for that, the closest possible size is
    taken instead, once per aspect ratio: sizes that come out equal are one crop. So every aspect ratio gives at
    least one crop and at most one per scale. A window is centred on the face; where it would leave the photo it is
    shifted by no more than needed rather than padded, so that no made-up pixels are trained on. A face with room
    for its crop is always wholly in it.

    Args:
        image_hw: height and width of the photo in pixels.
        face: the face box in pixels; may reach over the photo's edge.
        aspect_ratios: "width:height" each.
        scales: positive factors of f_long.

    Source: App. D.
    """
    assert face.long_side > 0, face
    height, width = image_hw
    crops: list[CropBox] = []
    for aspect in aspect_ratios:
        seen: set[tuple[int, int]] = set()
        for scale in scales:
            crop_height, crop_width = _crop_size(image_hw, aspect=aspect, short_side=scale * face.long_side)
            if (crop_height, crop_width) in seen:
                continue
            seen.add((crop_height, crop_width))
            x0 = _place((face.x0 + face.x1) / 2, length=crop_width, available=width)
            y0 = _place((face.y0 + face.y1) / 2, length=crop_height, available=height)
            crops.append(CropBox(x0, y0, x0 + crop_width, y0 + crop_height, aspect, scale))
    return crops


def _crop_size(image_hw: tuple[int, int], *, aspect: str, short_side: float) -> tuple[int, int]:
    """Height and width of the crop whose shorter side comes closest to `short_side` within the photo."""
    height, width = image_hw
    ratio_width, ratio_height = parse_aspect(aspect)
    landscape = ratio_width >= ratio_height
    ratio = max(ratio_width, ratio_height) / min(ratio_width, ratio_height)
    across, along = (height, width) if landscape else (width, height)  # what the short and the long side have room in
    short = max(1, min(round(short_side), across, int(along / ratio + 1e-6)))
    long = min(max(1, round(short * ratio)), along)
    return (short, long) if landscape else (long, short)


def _place(centre: float, *, length: int, available: int) -> int:
    """Start of a window of `length` centred as far as the photo allows."""
    return min(max(round(centre - length / 2), 0), available - length)
