"""From a photo to training pictures: crops of App. D or the whole photo, resized to the shapes the model trains on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from metalora.core.contracts import Box, DetectedFace
from metalora.core.crops import ASPECT_RATIOS, SCALES, crop_boxes, parse_aspect
from metalora.core.errors import UserError

Shape = tuple[int, int]
"""Height and width in pixels."""
Window = tuple[int, int, int, int]
"""x0 y0 (inclusive) to x1 y1 (exclusive) in pixels."""
Mode = Literal["crops", "whole", "native"]
"""crops: App. D around the face. whole: the uncropped photo, which must show a face. native: the photo, unexamined."""
MODES: tuple[Mode, ...] = ("crops", "whole", "native")


@dataclass(frozen=True)
class PicturePlan:
    """A window of a photo, the shape it is resized to, and how to name it."""

    window: Window
    shape: Shape
    words: str


@dataclass(frozen=True)
class TrainingPicture:
    """One picture before it is encoded: uint8 RGB [*shape, 3], and where it came from."""

    pixels: np.ndarray
    shape: Shape
    source: str


def shapes_for(
    resolution: int, *, multiple: int, aspect_ratios: Sequence[str] = ("1:1", "3:4", "4:3", "9:16", "16:9")
) -> tuple[Shape, ...]:
    """The shape of each aspect ratio with an area of about resolution x resolution.

    Args:
        resolution: side of the square shape in pixels.
        multiple: every side is a multiple of this (`Backbone.pixel_multiple`).
        aspect_ratios: "width:height" each.

    Raises:
        UserError: the resolution is not a multiple.
    """
    if resolution % multiple or resolution < multiple:
        raise UserError(
            "a resolution that the backbone cannot encode",
            expected=f"a multiple of {multiple}",
            got=str(resolution),
            key="resolutions",
        )
    shapes: list[Shape] = []
    for aspect in aspect_ratios:
        ratio_width, ratio_height = parse_aspect(aspect)
        root = (ratio_width / ratio_height) ** 0.5
        shapes.append(
            (
                max(1, round(resolution / root / multiple)) * multiple,
                max(1, round(resolution * root / multiple)) * multiple,
            )
        )
    return tuple(shapes)


def nearest_shape(image_hw: tuple[int, int], shapes: Sequence[Shape]) -> Shape:
    """The shape whose aspect ratio needs the least cutting away; the first of equals."""
    wanted = np.log(image_hw[1] / image_hw[0])
    return min(shapes, key=lambda shape: abs(np.log(shape[1] / shape[0]) - wanted))


def plan_pictures(
    photo_hw: tuple[int, int],
    face: Box | None,
    *,
    mode: Mode,
    shapes: Sequence[Sequence[Shape]],
    aspect_ratios: Sequence[str] = ASPECT_RATIOS,
    scales: Sequence[float] = SCALES,
) -> list[PicturePlan]:
    """What is cut from a photo, at every resolution.

    Args:
        photo_hw: height and width of the photo.
        face: the face box; needed for crops.
        mode: "crops": every crop of App. D, the original not among them unless it is one. "whole" and "native": the
            photo once, cut only as far as its aspect ratio differs from the nearest shape's.
        shapes: one set of shapes per resolution.
        aspect_ratios: of the crops.
        scales: of the crops.
    """
    assert mode in MODES, mode
    windows: list[tuple[Window, tuple[int, int], str]] = [((0, 0, photo_hw[1], photo_hw[0]), photo_hw, mode)]
    if mode == "crops":
        assert face is not None
        windows = [
            ((crop.x0, crop.y0, crop.x1, crop.y1), _height_to_width(crop.aspect), f"{crop.aspect} x{crop.scale:g}")
            for crop in crop_boxes(photo_hw, face, aspect_ratios=aspect_ratios, scales=scales)
        ]
    return [
        PicturePlan(window, nearest_shape(aspect_hw, resolution_shapes), words)
        for resolution_shapes in shapes
        for window, aspect_hw, words in windows
    ]


def training_pictures(
    photo: np.ndarray, face: Box | None, *, mode: Mode, shapes: Sequence[Sequence[Shape]], name: str
) -> list[TrainingPicture]:
    """The pictures a photo (uint8 RGB [H, W, 3]) is trained on; see `plan_pictures`. `name` goes into `source`."""
    image = Image.fromarray(photo)
    return [
        TrainingPicture(fit(image, window=plan.window, shape=plan.shape), plan.shape, f"{name} {plan.words}")
        for plan in plan_pictures((photo.shape[0], photo.shape[1]), face, mode=mode, shapes=shapes)
    ]


def fit(image: Image.Image, *, window: Window, shape: Shape) -> np.ndarray:
    """Resize a window of an image to a shape without stretching: its longer remainder is cut off on both sides."""
    x0, y0, x1, y1 = window
    height, width = shape
    scale = min((x1 - x0) / width, (y1 - y0) / height)
    # max: rounding may make a margin of nothing negative, which Pillow refuses
    margin_x, margin_y = max(0.0, (x1 - x0) - width * scale) / 2, max(0.0, (y1 - y0) - height * scale) / 2
    box = (x0 + margin_x, y0 + margin_y, x1 - margin_x, y1 - margin_y)
    # reducing_gap: a camera photo is first halved until it is three times too large, or 25 crops of it take seconds
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0))


def choose_face(faces: Sequence[DetectedFace], *, face: Literal["only", "largest"], name: str, key: str) -> Box:
    """The face a photo is trained for.

    Args:
        faces: what the detector found.
        face: "only": there must be exactly one. "largest": the one with the largest area.
        name: of the photo, for the error message.
        key: the configuration key that named the photo.

    Raises:
        UserError: no face, or several when one is required.
    """
    if not faces:
        raise UserError(
            f"no face found in {name}",
            expected="one clearly visible face",
            got="0 faces",
            key=f"{key} or scorer.detector.threshold",
        )
    if face == "only" and len(faces) > 1:
        raise UserError(
            f"several faces found in {name}",
            expected="exactly one face, or face=largest to take the largest",
            got=f"{len(faces)} faces",
            key="face",
        )
    return max((found.box for found in faces), key=lambda box: (box.x1 - box.x0) * (box.y1 - box.y0))


def _height_to_width(aspect: str) -> tuple[int, int]:
    width, height = parse_aspect(aspect)
    return height, width
