"""Yaw from five points: exact on the average face, close on rendered people, the same however the picture is scaled."""

import numpy as np
import pytest
import torch
from test_faces import portrait  # noqa: F401  (a fixture)

from metalora.miniworld import pose_error
from metalora.perception import pose
from metalora.perception.faces import MtcnnDetector
from metalora.perception.pose import head_pose


def seen(yaw: float, pitch: float, roll: float, *, scale: float = 1.3, shift: tuple[float, float] = (200.0, 150.0)):
    """The average face's points in a picture, turned by angles in degrees with matrices written out here."""
    a, b, c = np.radians([yaw, pitch, roll])
    about_y = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    about_z = np.array([[np.cos(c), np.sin(c), 0], [-np.sin(c), np.cos(c), 0], [0, 0, 1]])  # y points down
    points = (pose._FACE @ (about_y @ about_x @ about_z).T)[:, :2] * scale + np.array(shift)
    return tuple((float(x), float(y)) for x, y in points)


@pytest.mark.parametrize("yaw", [-50, -30, -10, 0, 25, 45])
@pytest.mark.parametrize(("pitch", "roll"), [(0, 0), (8, -15), (-8, 30)])
def test_the_average_face_is_read_back(yaw: float, pitch: float, roll: float) -> None:
    found = head_pose(seen(yaw, pitch, roll))
    assert found.yaw == pytest.approx(yaw, abs=4)
    assert found.roll == pytest.approx(roll, abs=5)
    assert found.pitch * pitch >= 0 and abs(found.pitch) <= abs(pitch) + 3  # held back: a nod is easily mistaken


def test_positive_yaw_turns_towards_the_right_edge() -> None:
    turned = np.array(seen(30, 0, 0))
    assert turned[2, 0] - turned[:2, 0].mean() > 5  # the nose has moved right
    assert head_pose(seen(30, 0, 0)).yaw > 20


def test_size_and_place_do_not_matter() -> None:
    one, other = head_pose(seen(20, 5, 10)), head_pose(seen(20, 5, 10, scale=0.2, shift=(3.0, 900.0)))
    assert (one.yaw, one.pitch, one.roll) == pytest.approx((other.yaw, other.pitch, other.roll), abs=1e-4)


def test_a_mirrored_face_is_turned_the_other_way() -> None:
    left, right, nose, low_left, low_right = ((-x, y) for x, y in seen(20, 4, 0))
    assert head_pose((right, left, nose, low_right, low_left)).yaw == pytest.approx(-head_pose(seen(20, 4, 0)).yaw)


def test_a_real_photo_of_a_frontal_face(portrait) -> None:  # noqa: F811
    (faces,) = MtcnnDetector().detect([np.asarray(portrait)])
    assert faces[0].points is not None
    assert abs(head_pose(faces[0].points).yaw) < 8


def test_rendered_people_are_turned_as_the_renderer_says() -> None:
    torch.set_num_threads(1)
    errors = pose_error.measure(40, size=256)
    yaw = np.abs(errors.errors[:, 0])
    assert len(yaw) >= 36
    assert yaw.mean() < 8 and np.percentile(yaw, 90) < 16
    assert np.corrcoef(errors.true_N3[:, 0], errors.found_N3[:, 0])[0, 1] > 0.93
