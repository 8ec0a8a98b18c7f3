"""Folders of rendered people: counts, layout, what the photos of one person share, and going on after a cut."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalora.core.errors import UserError
from metalora.miniworld import folders, phd
from metalora.miniworld.corpus import SIZES
from metalora.miniworld.phd import write_mini_phd, write_people, write_split
from metalora.miniworld.population import identity
from metalora.people.benchmark import load_benchmark
from metalora.people.folder import scan_people


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_mini_phd_has_the_counts_and_the_layout_of_meta_phd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phd, "PHOTO_SIZE", 16)
    seen: list[tuple[str, int, int]] = []
    write_mini_phd(tmp_path, progress=lambda *state: seen.append(state))
    assert seen[-1][1:] == (158, 158)
    people = sorted((tmp_path / "unsplash").iterdir())
    counts = [len(list(person.iterdir())) for person in people]
    assert (len(people), sum(counts), min(counts), max(counts)) == (16, 98, 4, 10)
    assert [len(list((tmp_path / "ffhq" / noun).glob("*.png"))) for noun in ("man", "woman")] == [30, 30]
    nouns = json.loads((tmp_path / "identities.json").read_text())
    assert sorted(nouns) == [person.name for person in people]
    assert sorted(nouns.values()) == ["man"] * 8 + ["woman"] * 8
    benchmark = load_benchmark(tmp_path)
    assert len(benchmark.subjects) == 76
    assert not benchmark.notes, "counts differ from Meta-PHD's"
    write_mini_phd(tmp_path, progress=lambda *state: pytest.fail("a finished benchmark is rendered again"))


def test_photos_of_one_person_share_the_day_and_start_with_the_reference() -> None:
    photos = phd._session(identity("phd", "woman", 0), count=8)
    shots = [photo.shot for photo in photos]
    for name in ("style", "scene", "shirt", "light", "seed"):
        assert len({getattr(shot, name) for shot in shots}) == 1, name
    reference, others = shots[0], shots[1:]
    assert (reference.expression, reference.framing) == ("neutral", "wide")
    assert abs(reference.yaw) <= 4
    assert np.ptp([shot.yaw for shot in others]) > 30
    assert len({shot.expression for shot in others}) > 1


def test_single_photos_are_within_thirty_degrees_and_differ() -> None:
    shots = [phd._single(identity("ffhq", "man", k), name=f"{k:05d}.png").shot for k in range(30)]
    assert max(abs(shot.yaw) for shot in shots) <= 30
    assert len({shot.scene for shot in shots}) > 5
    assert len({shot.shirt for shot in shots}) > 4


@pytest.mark.parametrize(("name", "split", "count"), [("mini_validation", "validation", 32), ("mini_test", "test", 64)])
def test_a_split_has_the_form_of_the_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, split: str, count: int
) -> None:
    monkeypatch.setattr(phd, "PHOTO_SIZE", 16)
    write_split(tmp_path, name)
    subjects = load_benchmark(tmp_path).subjects
    assert len(subjects) == count
    assert {subject.identity.rsplit("-", 1)[0] for subject in subjects} == {f"{split}-man", f"{split}-woman"}
    assert {len(subject.test_photos) for subject in subjects} == {4}


def test_stage_one_people_take_the_sizes_in_turn_and_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_PHOTOS_AT_ONCE", 6)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    write_people(whole, "stage1", "man", count=3, photos=6)
    scan = scan_people(whole)
    assert [person.identity for person in scan.people] == [f"stage1-man-{k:04d}" for k in range(3)]
    assert {person.class_noun for person in scan.people} == {"man"}
    sizes = [Image.open(photo).size[::-1] for photo in scan.people[0].photos]
    assert sizes == [*SIZES, SIZES[0]]

    shutil.copytree(whole, cut)
    (cut / "manifest.json").unlink()
    shutil.rmtree(cut / "stage1-man-0002")
    (cut / "stage1-man-0001" / "03.png").unlink()  # a person that is not complete is made again as a whole
    kept = (cut / "stage1-man-0000").stat().st_mtime_ns
    rendered = []
    real = folders.render
    monkeypatch.setattr(folders, "render", lambda *a, **k: rendered.append(len(a[1])) or real(*a, **k))
    write_people(cut, "stage1", "man", count=3, photos=6)
    assert sum(rendered) == 12
    assert (cut / "stage1-man-0000").stat().st_mtime_ns == kept
    assert tree(cut) == tree(whole)


def test_a_folder_of_other_people_is_refused(tmp_path: Path) -> None:
    write_people(tmp_path, "stage1", "woman", count=1, photos=1)
    before = tree(tmp_path)
    with pytest.raises(UserError, match="other settings"):
        write_people(tmp_path, "stage1", "woman", count=2, photos=1)
    assert tree(tmp_path) == before


def test_a_failed_write_leaves_no_half_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(self, *arguments, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full_disk)
        with pytest.raises(OSError, match="No space"):
            write_people(tmp_path, "stage1", "woman", count=1, photos=2)
    assert list(tmp_path.iterdir()) == []
    write_people(tmp_path, "stage1", "woman", count=1, photos=2)
    assert len(list((tmp_path / "stage1-woman-0000").iterdir())) == 2
