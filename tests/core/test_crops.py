"""App. D: the crops around a face."""

import random

import pytest

from metalora.core.contracts import Box
from metalora.core.crops import ASPECT_RATIOS, SCALES, crop_boxes, parse_aspect


def square_face(cx: float, cy: float, side: float) -> Box:
    return Box(cx - side / 2, cy - side / 2, cx + side / 2, cy + side / 2)


def test_a_roomy_photo_gives_all_25_crops_of_the_paper() -> None:
    crops = crop_boxes((2000, 2000), square_face(1000, 1000, 100))
    assert [(crop.aspect, crop.scale) for crop in crops] == [(a, s) for a in ASPECT_RATIOS for s in SCALES]
    for crop in crops:
        ratio_width, ratio_height = parse_aspect(crop.aspect)
        assert min(crop.width, crop.height) == round(100 * crop.scale)
        assert crop.width / crop.height == pytest.approx(ratio_width / ratio_height, rel=0.01)
        assert (crop.x0 + crop.x1) / 2 == pytest.approx(1000, abs=0.5)
        assert (crop.y0 + crop.y1) / 2 == pytest.approx(1000, abs=0.5)


def test_the_size_comes_from_the_longer_side_of_the_face() -> None:
    tall = Box(950, 900, 1050, 1100)
    crop = crop_boxes((2000, 2000), tall, aspect_ratios=["1:1"], scales=[2.0])[0]
    assert (crop.width, crop.height) == (400, 400)


def test_a_size_that_does_not_fit_is_replaced_by_the_closest_once() -> None:
    crops = crop_boxes((256, 256), square_face(128, 128, 80), aspect_ratios=["1:1", "16:9"])
    # 1:1 asks for 120 160 200 280 360; 16:9 has room for 144 only and asks for 120 first.
    assert [(c.aspect, c.height, c.width) for c in crops] == [
        ("1:1", 120, 120),
        ("1:1", 160, 160),
        ("1:1", 200, 200),
        ("1:1", 256, 256),
        ("16:9", 120, 213),
        ("16:9", 144, 256),
    ]


def test_a_face_that_fills_the_photo_still_gives_one_crop_per_aspect_ratio() -> None:
    crops = crop_boxes((64, 64), square_face(32, 32, 60))
    assert [c.aspect for c in crops] == list(ASPECT_RATIOS)
    assert {(c.height, c.width) for c in crops} == {(36, 64), (48, 64), (64, 64), (64, 48), (64, 36)}


def test_a_crop_at_the_edge_is_shifted_not_padded() -> None:
    crop = crop_boxes((400, 400), square_face(30, 380, 60), aspect_ratios=["1:1"], scales=[2.0])[0]
    assert (crop.x0, crop.y0, crop.x1, crop.y1) == (0, 280, 120, 400)


def test_properties_over_random_photos_and_faces() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        height, width = rng.randint(40, 900), rng.randint(40, 900)
        face_height = rng.uniform(8, height)
        face_width = rng.uniform(8, width)
        x0, y0 = rng.uniform(-8, width - face_width + 8), rng.uniform(-8, height - face_height + 8)
        face = Box(x0, y0, x0 + face_width, y0 + face_height)
        crops = crop_boxes((height, width), face)
        assert {c.aspect for c in crops} == set(ASPECT_RATIOS)
        assert len({(c.aspect, c.width, c.height) for c in crops}) == len(crops) <= 25
        for crop in crops:
            assert 0 <= crop.x0 < crop.x1 <= width
            assert 0 <= crop.y0 < crop.y1 <= height
            ratio_width, ratio_height = parse_aspect(crop.aspect)
            assert abs(crop.width * ratio_height - crop.height * ratio_width) <= max(ratio_width, ratio_height)
            wanted, short = crop.scale * face.long_side, min(crop.width, crop.height)
            if abs(short - wanted) > 0.5:  # then nothing larger fits
                assert short < wanted
                across, along = (height, width) if ratio_width >= ratio_height else (width, height)
                ratio = max(ratio_width, ratio_height) / min(ratio_width, ratio_height)
                assert short + 1 > across or (short + 1) * ratio > along
            else:
                assert crop.x0 <= max(face.x0, 0) and min(face.x1, width) <= crop.x1
                assert crop.y0 <= max(face.y0, 0) and min(face.y1, height) <= crop.y1
