"""The renderer: deterministic, identity and circumstances apart, faces where it says they are."""

import ast
from pathlib import Path

import numpy as np
import pytest

from metalora.miniworld import renderer
from metalora.miniworld.anatomy import pack
from metalora.miniworld.check import find_faces
from metalora.miniworld.corpus import SIZES
from metalora.miniworld.identity import Identity
from metalora.miniworld.population import CLASS_NOUNS, identity
from metalora.miniworld.renderer import face_boxes, render
from metalora.miniworld.shots import Shot, sample_shot
from metalora.miniworld.vocabulary import EXPRESSIONS, LIGHTS, SCENES, STYLES


def pairs(count: int, **fixed: object) -> tuple[list[Identity], list[Shot]]:
    rng = np.random.default_rng(0)
    people = [identity("base", CLASS_NOUNS[k % 2], k) for k in range(count)]
    return people, [sample_shot(rng, fixed=fixed) for _ in people]


def test_same_pixels_twice_and_in_any_batch() -> None:
    people, shots = pairs(5)
    together = render(people, shots, height=40, width=32)
    assert np.array_equal(together, render(people, shots, height=40, width=32))
    for k in (0, 3):
        assert np.array_equal(together[k], render([people[k]], [shots[k]], height=40, width=32)[0])
    assert np.array_equal(together[::-1], render(people[::-1], shots[::-1], height=40, width=32))


@pytest.mark.parametrize(("height", "width"), [*SIZES, (33, 21), (16, 100)])
def test_any_size_and_aspect_ratio(height: int, width: int) -> None:
    people, shots = pairs(3, style="photo")
    pictures = render(people, shots, height=height, width=width, supersample=1)
    assert pictures.shape == (3, height, width, 3)
    assert pictures.dtype == np.uint8
    assert (pictures.reshape(3, -1).std(1) > 5).all()


def test_nobody_is_rendered_when_nobody_is_asked_for() -> None:
    assert render([], [], height=8, width=8).shape == (0, 8, 8, 3)
    assert face_boxes([], [], 8, 8).shape == (0, 4)


def test_circumstances_leave_the_person_alone() -> None:
    person = identity("base", "man", 3)
    before = person.params.copy()
    shots = [sample_shot(np.random.default_rng(k), fixed={"expression": "neutral"}) for k in range(4)]
    records = pack([person] * 4, shots, height=64, width=64)
    render([person] * 4, shots, height=16, width=16)
    assert np.array_equal(person.params, before)
    for name in (
        "skull_ix",
        "jaw_ix",
        "nose_tip_z",
        "eye_x",
        "skin_r",
        "hair_g",
        "iris_b",
        "cap_iy",
        "mole",
        "glasses",
    ):
        assert len(set(records[name].tolist())) == 1, name


def test_people_leave_the_circumstances_alone() -> None:
    shot = pairs(1)[1][0]
    people = pairs(4)[0]
    records = pack(people, [shot] * 4, height=64, width=64)
    for name in ("r00", "r12", "focal", "key_x", "sky_r", "shirt_g", "scene", "style", "gaze_x", "seed"):
        assert len(set(records[name].tolist())) == 1, name


def test_every_attribute_shows() -> None:
    person, shot = identity("base", "woman", 1), pairs(1, style="photo", pose="front", scale=0.9)[1][0]
    fields = shot.__dict__
    for name, words in (("style", STYLES), ("scene", SCENES), ("expression", EXPRESSIONS), ("light", LIGHTS)):
        variants = [Shot(**(fields | {name: word})) for word in words]
        pictures = render([person] * len(variants), variants, height=32, width=32).astype(float)
        x0, y0, x1, y1 = face_boxes([person], [shot], 32, 32)[0].round().astype(int)
        for i in range(len(variants)):
            for j in range(i):
                change = np.abs(pictures[i] - pictures[j])
                difference = change.mean() if name == "scene" else change[y0:y1, x0:x1].mean()
                assert difference > 1.5, (name, list(words)[i], list(words)[j], difference)


def test_yaw_turns_the_face_to_the_named_side() -> None:
    person = identity("base", "man", 4)
    shots = [
        sample_shot(np.random.default_rng(0), fixed={"style": "photo", "yaw": yaw, "pitch": 0.0, "roll": 0.0})
        for yaw in (-35.0, 35.0)
    ]
    records = pack([person, person], shots, height=64, width=64)
    assert [shot.pose for shot in shots] == ["left", "right"]
    assert records["r02"][0] < 0 < records["r02"][1]  # where the head's forward axis points on the picture


def test_faces_are_where_face_boxes_says() -> None:
    people, shots = pairs(6, style="photo", pose="front", light="soft", offset_x=0.0, offset_y=0.0)
    boxes = face_boxes(people, shots, 160, 160)
    assert ((boxes >= 0) & (boxes <= 160)).all()
    found = find_faces(people, shots, size=160)
    assert found.rate > 0.8
    assert np.median(found.overlap) > 0.7


def test_boxes_stay_inside_the_picture_and_scale_with_the_framing() -> None:
    people, shots = pairs(8)
    for height, width in SIZES:
        boxes = face_boxes(people, shots, height, width)
        assert (boxes[:, 2] > boxes[:, 0]).all()
        assert (boxes[:, 3] > boxes[:, 1]).all()
        assert (boxes >= 0).all()
        assert (boxes <= [width, height, width, height]).all()
    fields = shots[0].__dict__ | {"pose": "front", "yaw": 0.0}
    small, large = (face_boxes(people[:1], [Shot(**(fields | {"scale": scale}))], 200, 200)[0] for scale in (0.45, 0.9))
    assert (large[3] - large[1]) / (small[3] - small[1]) == pytest.approx(2, abs=0.05)


def test_the_kernel_cache_depends_on_every_source_it_is_compiled_from() -> None:
    folder = Path(renderer.__file__).parent
    todo, reached = ["renderer.py"], set()
    while todo:
        name = todo.pop()
        if name in reached:
            continue
        reached.add(name)
        for node in ast.walk(ast.parse((folder / name).read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("metalora.miniworld."):
                todo.append(node.module.rsplit(".", 1)[1] + ".py")
    plain = {"identity.py", "shots.py", "vocabulary.py"}  # no compiled code in these
    assert reached - plain == set(renderer._SOURCES)
    for name in plain:
        assert "numba" not in (folder / name).read_text()
