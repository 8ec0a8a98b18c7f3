"""Eyes that are open, closed and behind dark glasses, on a real photo and on rendered people."""

import numpy as np
import torch
from test_faces import portrait  # noqa: F401  (a fixture)

from metalora.miniworld.check import draw
from metalora.miniworld.eye_error import with_closed_eyes, with_dark_glasses
from metalora.miniworld.renderer import render
from metalora.perception.eyes import eyes_visible
from metalora.perception.faces import MtcnnDetector


def test_a_real_face_with_open_closed_and_covered_eyes(portrait) -> None:  # noqa: F811
    image = np.asarray(portrait)
    points = MtcnnDetector().detect([image])[0][0].points
    assert points is not None
    assert eyes_visible(image, points) == (True, True)
    assert eyes_visible(with_closed_eyes(image, points), points) == (False, False)
    assert eyes_visible(with_dark_glasses(image, points), points) == (False, False)


def test_one_covered_eye_is_told_from_the_other(portrait) -> None:  # noqa: F811
    image = np.asarray(portrait)
    points = MtcnnDetector().detect([image])[0][0].points
    assert points is not None
    half = int((points[0][0] + points[1][0]) / 2)
    mixed = np.concatenate([with_dark_glasses(image, points)[:, :half], image[:, half:]], axis=1)
    assert eyes_visible(mixed, points) == (False, True)


def test_on_rendered_people() -> None:
    torch.set_num_threads(1)
    people, shots = draw(24, seed=5, style="photo", yaw=0.0, pitch=0.0, scale=0.8)
    told: dict[str, list[bool]] = {"open": [], "closed": [], "covered": []}
    detector = MtcnnDetector()
    for picture in render(people, shots, height=256, width=256):
        faces = detector.detect([picture])[0]
        if faces and (points := faces[0].points) is not None:
            told["open"].append(all(eyes_visible(picture, points)))
            told["closed"].append(all(eyes_visible(with_closed_eyes(picture, points), points)))
            told["covered"].append(all(eyes_visible(with_dark_glasses(picture, points), points)))
    assert len(told["open"]) >= 22
    assert np.mean(told["open"]) > 0.9 and np.mean(told["closed"]) < 0.5 and not any(told["covered"])
