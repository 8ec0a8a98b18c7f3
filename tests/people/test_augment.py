"""Training pictures: shapes, crops, no stretching, and which face."""

import numpy as np
import pytest

from metalora.core.contracts import Box, DetectedFace
from metalora.core.crops import crop_boxes
from metalora.core.errors import UserError
from metalora.people.augment import choose_face, nearest_shape, shapes_for, training_pictures

MINI = ((64, 64), (72, 56), (56, 72), (88, 48), (48, 88))


def ramp(height: int, width: int) -> np.ndarray:
    """Red counts columns, green counts rows: any window can be read off its resized picture."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // (width - 1), y * 255 // (height - 1), 0 * x], axis=2).astype(np.uint8)


def test_shapes_of_the_mini_world_and_of_flux() -> None:
    assert shapes_for(64, multiple=8) == MINI
    for resolution in (512, 768, 1024):
        shapes = shapes_for(resolution, multiple=16)
        assert len(set(shapes)) == 5
        assert all(side % 16 == 0 for shape in shapes for side in shape)
        assert all(abs(h * w / resolution**2 - 1) < 0.03 for h, w in shapes)
    assert shapes_for(1024, multiple=16)[1:3] == ((1184, 880), (880, 1184))
    with pytest.raises(UserError, match="multiple of 16; got 1000"):
        shapes_for(1000, multiple=16)


@pytest.mark.parametrize(
    ("image_hw", "shape"),
    [
        ((256, 256), (64, 64)),
        ((1280, 960), (72, 56)),
        ((960, 1280), (56, 72)),
        ((4000, 1000), (88, 48)),
        ((1080, 1920), (48, 88)),
    ],
)
def test_the_nearest_shape_by_aspect_ratio(image_hw: tuple[int, int], shape: tuple[int, int]) -> None:
    assert nearest_shape(image_hw, MINI) == shape


def test_crops_come_in_the_shape_of_their_aspect_ratio() -> None:
    face = Box(110, 110, 150, 160)
    pictures = training_pictures(ramp(256, 256), face, mode="crops", shapes=[MINI], name="a.jpg")
    crops = crop_boxes((256, 256), face)
    by_aspect = dict(zip(("1:1", "3:4", "4:3", "9:16", "16:9"), MINI, strict=True))
    assert [picture.shape for picture in pictures] == [by_aspect[crop.aspect] for crop in crops]
    assert [picture.source for picture in pictures] == [f"a.jpg {crop.aspect} x{crop.scale:g}" for crop in crops]
    for picture, crop in zip(pictures, crops, strict=True):
        assert picture.pixels.shape == (*picture.shape, 3) and picture.pixels.dtype == np.uint8
        centre = picture.pixels[picture.shape[0] // 2, picture.shape[1] // 2].astype(float)
        assert centre[0] == pytest.approx((crop.x0 + crop.x1) / 2, abs=4)
        assert centre[1] == pytest.approx((crop.y0 + crop.y1) / 2, abs=4)
        corner = picture.pixels[0, 0].astype(float)
        assert corner[0] >= crop.x0 - 1 and corner[1] >= crop.y0 - 1
        # no stretching: one pixel is as many photo pixels across as down
        span_x = (float(picture.pixels[0, -1, 0]) - corner[0]) / (picture.shape[1] - 1)
        span_y = (float(picture.pixels[-1, 0, 1]) - corner[1]) / (picture.shape[0] - 1)
        assert span_x == pytest.approx(span_y, rel=0.06)


def test_several_resolutions_repeat_every_crop() -> None:
    large = shapes_for(128, multiple=8)
    face = Box(110, 110, 150, 160)
    one = training_pictures(ramp(256, 256), face, mode="crops", shapes=[MINI], name="a")
    two = training_pictures(ramp(256, 256), face, mode="crops", shapes=[MINI, large], name="a")
    assert len(two) == 2 * len(one)
    assert {picture.shape for picture in two} == {*MINI, *large}


@pytest.mark.parametrize("mode", ["whole", "native"])
def test_the_whole_photo_is_cut_only_as_far_as_its_shape_needs(mode: str) -> None:
    (picture,) = training_pictures(ramp(256, 200), None, mode=mode, shapes=[MINI], name="a.jpg")  # type: ignore[arg-type]
    assert picture.shape == (72, 56) and picture.source == f"a.jpg {mode}"
    assert picture.pixels[0, 0].max() <= 4 and picture.pixels[-1, -1, :2].min() >= 251
    (square,) = training_pictures(ramp(64, 64), None, mode=mode, shapes=[MINI], name="a.jpg")  # type: ignore[arg-type]
    assert np.array_equal(square.pixels, ramp(64, 64))


def test_the_remainder_is_cut_off_on_both_sides_not_squeezed_in() -> None:
    (picture,) = training_pictures(ramp(256, 96), None, mode="whole", shapes=[MINI], name="a.jpg")
    assert picture.shape == (88, 48)  # 176 of the 256 rows are kept
    assert picture.pixels[0, 0, 1] == pytest.approx(40, abs=3)
    assert picture.pixels[-1, 0, 1] == pytest.approx(255 - 40, abs=3)


def test_shrinking_averages_instead_of_skipping_pixels() -> None:
    stripes = np.zeros((1024, 1024, 3), np.uint8)
    stripes[:, ::2] = 255
    (picture,) = training_pictures(stripes, None, mode="whole", shapes=[[(64, 64)]], name="a")
    assert np.abs(picture.pixels[8:-8, 8:-8].astype(int) - 127).max() <= 2


def test_exactly_one_face_unless_the_largest_is_asked_for() -> None:
    small, large = DetectedFace(Box(0, 0, 10, 10), 0.999), DetectedFace(Box(50, 50, 90, 90), 0.95)
    assert choose_face([small], face="only", name="a.jpg", key="image") == small.box
    assert choose_face([small, large], face="largest", name="a.jpg", key="image") == large.box
    with pytest.raises(
        UserError, match=r"several faces found in a.jpg; expected .*face=largest.*; got 2 faces; key: face"
    ):
        choose_face([small, large], face="only", name="a.jpg", key="image")
    for face in ("only", "largest"):
        with pytest.raises(UserError, match=r"no face found in a.jpg; .*key: image"):
            choose_face([], face=face, name="a.jpg", key="image")  # type: ignore[arg-type]


def test_no_photo_size_upsets_the_resizing() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        height, width = (int(side) for side in rng.integers(32, 420, 2))
        photo = np.full((height, width, 3), 90, np.uint8)
        half = rng.uniform(6, min(height, width) / 2)
        x, y = rng.uniform(half / 2, width - half / 2), rng.uniform(half / 2, height - half / 2)
        face = Box(x - half, y - half, x + half, y + half)
        for picture in training_pictures(photo, face, mode="crops", shapes=[MINI], name="a"):
            assert (picture.pixels == 90).all()
