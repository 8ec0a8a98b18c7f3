"""Whether an eye can be seen open, from the pixels around it on an aligned face. Rough: a hint for a person who looks.

An open eye is lighter than dark glass, and has an iris that is dark over some height or a white that is less coloured
than the skin; a closed lid is skin and a thin line of lashes. How often this is right on rendered people, with glasses
and lids painted over their eyes, stands in LOG.md (`python -m metalora.miniworld.eye_error`).
"""

import numpy as np

from metalora.core.contracts import FivePoints
from metalora.perception.arcface import TEMPLATE, aligned

_HALF_HEIGHT, _HALF_WIDTH = 6, 9
"""Of the window around an eye, in pixels of the aligned face."""
COVERED_BELOW = 0.45
"""Mean luminance of the window, as a share of the cheeks'."""
IRIS_ROWS, DARK = 3.0, 0.72
"""Rows that are darker than this share of the cheeks: more than that is an iris, not lashes."""
WHITE = 0.1
"""How much less saturated than the cheeks the white of an eye is at least."""
_LUMINANCE = np.array([0.299, 0.587, 0.114])


def eyes_visible(image: np.ndarray, points: FivePoints) -> tuple[bool, bool]:
    """Whether the eye on the picture's left, and the other one, is there and open.

    Args:
        image: uint8 RGB [H, W, 3].
    """
    face = aligned(image, points).astype(np.float64)
    cheeks_3 = np.median(face[62:72, [*range(30, 42), *range(70, 82)]].reshape(-1, 3), axis=0)
    left, right = (_visible(face, x=int(x), y=int(y), cheeks_3=cheeks_3) for x, y in TEMPLATE[:2])
    return left, right


def _visible(face: np.ndarray, *, x: int, y: int, cheeks_3: np.ndarray) -> bool:
    window = face[y - _HALF_HEIGHT : y + _HALF_HEIGHT + 1, x - _HALF_WIDTH : x + _HALF_WIDTH + 1]
    light, skin = window @ _LUMINANCE, max(float(cheeks_3 @ _LUMINANCE), 1.0)
    if light.mean() < COVERED_BELOW * skin:
        return False
    middle = light[:, _HALF_WIDTH - 3 : _HALF_WIDTH + 4]
    rows = np.sort((middle < DARK * skin).sum(axis=0))[-3:].mean()
    pale = _saturation(cheeks_3) - _saturation(window)
    whites = np.percentile(np.where(light > 0.6 * skin, pale, -1.0), 95)
    return bool(rows > IRIS_ROWS or whites > WHITE)


def _saturation(colour: np.ndarray) -> np.ndarray:
    return 1 - colour.min(axis=-1) / np.maximum(colour.max(axis=-1), 1.0)
