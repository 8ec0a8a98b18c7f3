"""The copy-paste score on faces whose angles are known, and its bounds on faces whose angles are not."""

import math

import pytest
import torch
from torch import Tensor

from metalora.core.copy_paste import copy_paste


def at(degrees: float) -> Tensor:
    angle = math.radians(degrees)
    return torch.tensor([math.cos(angle), math.sin(angle)])


def test_the_reference_itself_is_a_copy() -> None:
    score = copy_paste(at(0)[None], reference_D=at(0), test_photos_TD=torch.stack([at(20), at(-35)]))
    assert score.tolist() == pytest.approx([1.0], abs=1e-6)


def test_the_other_photo_is_the_opposite_of_a_copy() -> None:
    score = copy_paste(at(20)[None], reference_D=at(0), test_photos_TD=at(20)[None])
    assert score.tolist() == pytest.approx([-1.0], abs=1e-6)


def test_half_way_is_no_copy() -> None:
    score = copy_paste(at(10)[None], reference_D=at(0), test_photos_TD=at(20)[None])
    assert score.tolist() == pytest.approx([0.0], abs=1e-6)


def test_a_known_angle() -> None:
    # 5 degrees from the reference, 15 and 35 from the test photos, which are 20 and 30 from the reference
    score = copy_paste(at(5)[None], reference_D=at(0), test_photos_TD=torch.stack([at(20), at(-30)]))
    assert score.tolist() == pytest.approx([((15 - 5) / 20 + (35 - 5) / 30) / 2], abs=1e-6)


def test_a_stranger_is_no_copy_and_length_does_not_count() -> None:
    reference, test, stranger = torch.eye(3)
    scores = copy_paste(torch.stack([stranger, 7 * stranger]), reference_D=3 * reference, test_photos_TD=test[None])
    assert scores.tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


def test_bounds_and_a_photo_that_is_there_twice() -> None:
    source = torch.Generator().manual_seed(0)
    faces, tests = torch.randn(50, 4, generator=source), torch.randn(3, 4, generator=source)
    scores = copy_paste(faces, reference_D=tests[0], test_photos_TD=tests)
    assert scores.shape == (50,)
    assert bool((scores.abs() <= 1).all())
    assert copy_paste(faces, reference_D=tests[0], test_photos_TD=tests[:1]).abs().max() == 0  # the same photo


def test_no_test_photo_is_an_error() -> None:
    with pytest.raises(AssertionError, match="no test photo"):
        copy_paste(torch.eye(2), reference_D=at(0), test_photos_TD=torch.empty(0, 2))
