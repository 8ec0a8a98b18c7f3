"""Where a head is turned, from the five points that MTCNN finds: eyes, nose tip, corners of the mouth.

An average face is turned, scaled and shifted until it fits the points under weak perspective. Noses are longer or
flatter and a smile lifts the corners of the mouth, so both may give way a little; a nod then looks much like a long
chin, and only yaw can be trusted. The error on rendered people stands in LOG.md
(`python -m metalora.miniworld.pose_error`).
"""

from dataclasses import dataclass

import numpy as np

from metalora.core.contracts import FivePoints

_FACE = np.array(
    [[-31.5, -36.0, -25.0], [31.5, -36.0, -25.0], [0.0, 0.0, 0.0], [-26.0, 35.0, -22.0], [26.0, 35.0, -22.0]]
)
"""Millimetres from the tip of the nose, frontal: x to the picture's right, y down, z towards the camera. Adults' pupils
are 63 apart."""
_MOUTH, _NOSE = np.zeros((5, 3)), np.zeros((5, 3))
_MOUTH[3:, 1] = 1.0  # a lower mouth
_NOSE[2, 2] = 1.0  # a longer nose
_SPREAD = np.array([np.radians(40), np.radians(10), np.radians(40), 8.0, 5.0])
"""Standard deviations from zero in ordinary photos: of yaw, pitch, roll (radians), mouth and nose (millimetres)."""
_NOISE = 2.5
"""Of a point, in millimetres."""
_STARTS = (0.0, -35.0, 35.0)
_ROUNDS = 40


@dataclass(frozen=True)
class HeadPose:
    """Degrees; positive yaw turns the face towards the right edge of the picture, positive pitch up, positive roll
    counterclockwise, as in the mini world's shots."""

    yaw: float
    pitch: float
    roll: float


def head_pose(points: FivePoints) -> HeadPose:
    """Pose of the head on which these points lie."""
    target_52 = np.asarray(points, dtype=np.float64)
    assert target_52.shape == (5, 2), target_52.shape
    target_52 = target_52 - target_52.mean(0)
    roll = float(np.arctan2(*(target_52[1] - target_52[0])[::-1]))
    fits = [_fit(np.array([np.radians(yaw), 0.0, roll, 0.0, 0.0]), target_52) for yaw in _STARTS]
    best_5 = min(fits, key=lambda fit: fit[1])[0]
    yaw, pitch, roll = ((float(angle) + 180) % 360 - 180 for angle in np.degrees(best_5[:3]))
    return HeadPose(yaw, pitch, -roll)


def _fit(at_5: np.ndarray, target_52: np.ndarray) -> tuple[np.ndarray, float]:
    """Levenberg-Marquardt from a start; the parameters and the sum of squares reached."""
    damping, step = 1e-2, 1e-6
    residual = _residual(at_5, target_52)
    for _ in range(_ROUNDS):
        columns = [(_residual(at_5 + step * unit, target_52) - residual) / step for unit in np.diag(_SPREAD)]
        slope = np.stack(columns, axis=1) / _SPREAD  # per unit of each parameter
        normal = slope.T @ slope
        change_5 = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), slope.T @ residual)
        trial = _residual(at_5 - change_5, target_52)
        if trial @ trial < residual @ residual:
            at_5, residual, damping = at_5 - change_5, trial, damping / 5
            if np.abs(change_5 / _SPREAD).max() < 1e-6:
                break
        else:
            damping *= 5
    return at_5, float(residual @ residual)


def _residual(at_5: np.ndarray, target_52: np.ndarray) -> np.ndarray:
    """What does not fit, each in its own standard deviation: ten coordinates, then the five parameters; [15].

    The points are brought to the face's millimetres by the scale that fits best, which has a closed form.
    """
    face_53 = _FACE + at_5[3] * _MOUTH + at_5[4] * _NOSE
    turned_52 = (face_53 @ _rotation(at_5).T)[:, :2]
    turned_52 = turned_52 - turned_52.mean(0)
    scale = max(float((turned_52 * target_52).sum() / max((target_52**2).sum(), 1e-12)), 1e-6)
    return np.concatenate([(scale * target_52 - turned_52).ravel() / _NOISE, at_5 / _SPREAD])


def _rotation(at_5: np.ndarray) -> np.ndarray:
    """Head to picture, as the renderer turns heads: roll, then pitch, then yaw; y points down here."""
    a, b, c = at_5[:3]
    turn = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    nod = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    tilt = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return turn @ nod @ tilt
