"""The rules of section 4.1, each broken once, in a benchmark whose pictures say themselves what is on them."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalora.core.contracts import Box, DetectedFace
from metalora.core.errors import UserError
from metalora.people.benchmark import load_benchmark
from metalora.people.curation import check_curation


class Reader:
    """Reads faces off a picture's first pixel: (faces, yaw + 100, eyes as two bits)."""

    def detect(self, images):
        found = []
        for image in images:
            count, yaw, _ = (int(v) for v in image[0, 0])
            points = tuple((float(yaw - 100), float(k)) for k in range(5))
            found.append([DetectedFace(Box(0, 0, 9, 9), 0.99, points)] * count)
        return found


def picture(path: Path, *, faces: int = 1, yaw: int = 0, eyes: int = 3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((40, 40, 3), 128, np.uint8)
    pixels[0, 0] = (faces, yaw + 100, eyes)
    pixels[1, 1:3] = np.frombuffer(hashlib.sha256(str(path).encode()).digest()[:6], np.uint8).reshape(2, 3)  # its own
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two good people and two good single photos."""
    for person in ("ann", "ben"):
        for k, yaw in enumerate((0, -20, 15, 30)):
            picture(tmp_path / f"unsplash/{person}/{k}.png", yaw=yaw)
    for noun in ("man", "woman"):
        picture(tmp_path / f"ffhq/{noun}/0.png", yaw=29)
    (tmp_path / "identities.json").write_text(json.dumps({"ann": "woman", "ben": "man"}))
    return tmp_path


def violations(root: Path) -> list[tuple[str, str, str]]:
    found, _ = check_curation(
        load_benchmark(root),
        root,
        detector=Reader(),
        yaw_of=lambda points: points[0][0],
        eyes_of=lambda image, points: (bool(image[0, 0, 2] & 1), bool(image[0, 0, 2] & 2)),
    )
    return [(v.rule, v.path.relative_to(root).as_posix(), v.what) for v in found if v.rule != "counts"]


def test_a_good_benchmark_violates_nothing_but_its_counts(root: Path) -> None:
    assert violations(root) == []
    found, seen = check_curation(
        load_benchmark(root), root, detector=Reader(), yaw_of=lambda p: p[0][0], eyes_of=lambda i, p: (True, True)
    )
    assert [v.what for v in found] == list(load_benchmark(root).notes) and len(found) == 4
    assert len(seen) == 10 and seen[root / "ffhq/man/0.png"].yaw == 29


def test_every_rule_is_told_with_its_photo(root: Path) -> None:
    picture(root / "ffhq/man/1.png", faces=2)
    picture(root / "ffhq/man/2.png", faces=0)
    picture(root / "ffhq/man/3.png", yaw=-31)
    picture(root / "ffhq/woman/1.png", eyes=2)
    picture(root / "ffhq/woman/2.png", eyes=0)
    picture(root / "unsplash/ann/1.png", faces=3, yaw=-20)
    (root / "unsplash/notes.txt").touch()
    (root / "ffhq/woman/3.png").write_bytes(b"no photo")
    told = violations(root)
    assert told[:3] == [
        ("files", "unsplash/notes.txt", "not a photo (.txt)"),
        ("exactly one person", "unsplash/ann/1.png", "3 faces are found"),
        ("exactly one person", "ffhq/man/1.png", "2 faces are found"),
    ]
    assert told[3:7] == [
        ("exactly one person", "ffhq/man/2.png", "no face is found"),
        ("within 30 degrees of frontal", "ffhq/man/3.png", "turned by about 31 degrees"),
        (
            "eyes open, face unobstructed",
            "ffhq/woman/1.png",
            "not the eye on the left can be seen open: closed, or covered",
        ),
        ("eyes open, face unobstructed", "ffhq/woman/2.png", "neither eye can be seen open: closed, or covered"),
    ]
    assert told[7][:2] == ("readable", "ffhq/woman/3.png") and len(told) == 8


def test_an_unsplash_person_may_turn_and_blink_but_must_turn(root: Path) -> None:
    for k in range(4):
        picture(root / f"unsplash/ann/{k}.png", yaw=40 + 6 * k, eyes=0)
    assert violations(root) == [("varied pose", "unsplash/ann", "yaw from about 40 to 58 degrees")]


@pytest.mark.parametrize("count", [3, 11])
def test_an_unsplash_person_has_four_to_ten_photos(root: Path, count: int) -> None:
    for path in (root / "unsplash/ben").iterdir():
        path.unlink()
    for k in range(count):
        picture(root / f"unsplash/ben/{k:02d}.png", yaw=20 * (k % 2))
    assert violations(root) == ([("4 to 10 photos per identity", "unsplash/ben", f"{count} photos")])


def test_people_who_cannot_be_used_are_listed_together(root: Path) -> None:
    picture(root / "unsplash/cleo/0.png")
    (root / "unsplash/dan").mkdir()
    for k in range(4):
        picture(root / f"unsplash/eve/{k}.png", yaw=20 * (k % 2))
    with pytest.raises(UserError, match="cleo has one photo"):
        load_benchmark(root)
    problems: list[UserError] = []
    benchmark = load_benchmark(root, problems=problems)
    told = [str(problem) for problem in problems]
    assert len(told) == 3 and "nothing to measure R-FaceSim with" in told[0]
    assert "dan has no photos" in told[1] and "eve has no class noun" in told[2]
    assert {s.identity for s in benchmark.subjects if s.part == "unsplash"} == {"ann", "ben"}


def again(photo: Path, to: Path) -> None:
    """The same pixels in another file."""
    Image.open(photo).save(to)


def test_a_photo_that_is_there_twice_is_told(root: Path) -> None:
    again(root / "unsplash/ann/0.png", root / "unsplash/ann/9.bmp")  # the reference
    again(root / "unsplash/ann/2.png", root / "unsplash/ben/2.png")
    again(root / "unsplash/ben/3.png", root / "unsplash/ben/7.tiff")
    again(root / "unsplash/ben/0.png", root / "ffhq/woman/8.png")
    reference, once = "the reference is no test photo", "every photo once"
    assert violations(root) == [
        (reference, "unsplash/ann/9.bmp", f"the same picture as the reference {root / 'unsplash/ann/0.png'}"),
        (once, "unsplash/ben/2.png", f"the same picture as ann's {root / 'unsplash/ann/2.png'}"),
        (once, "unsplash/ben/7.tiff", f"the same picture as {root / 'unsplash/ben/3.png'}"),
        (once, "ffhq/woman/8.png", f"the same picture as ben's {root / 'unsplash/ben/0.png'}"),
    ]


def test_the_reference_again_is_told_though_it_is_somebody_elses_too(root: Path) -> None:
    for name in ("ben/0.png", "ben/5.png"):
        again(root / "unsplash/ann/0.png", root / "unsplash" / name)
    told = [(rule, path) for rule, path, _ in violations(root)]
    assert ("the reference is no test photo", "unsplash/ben/5.png") in told
    assert ("every photo once", "unsplash/ben/0.png") in told


def test_people_of_one_name_are_told_with_their_files(root: Path) -> None:
    picture(root / "ffhq/man/0.bmp", yaw=3)
    with pytest.raises(UserError, match=r"two people in .* have the same name") as caught:
        load_benchmark(root)
    assert caught.value.got == f"{root / 'ffhq/man/0.bmp'} and {root / 'ffhq/man/0.png'}"
    problems: list[UserError] = []
    assert len(load_benchmark(root, problems=problems).subjects) == 4
    assert [str(problem) for problem in problems] == [str(caught.value)]
