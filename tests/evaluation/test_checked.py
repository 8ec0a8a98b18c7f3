"""Folders of any method against the benchmark: every line, and every cell once."""

import dataclasses
import hashlib
import shutil
from pathlib import Path

import pytest
from fake_world import World, make_world, paint

from metalora.core.errors import UserError
from metalora.core.manifest import to_line, write_manifest
from metalora.evaluation.checked import Checked, coverage, every_line

TEXTS = {
    (prompt_id, noun): f"a photo of a {noun}, {prompt_id}"
    for prompt_id in ("front-0", "front-1", "style-0", "style-1", "style-2")
    for noun in ("man", "woman")
}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def checked(world: World) -> Checked:
    return Checked(world.subjects, TEXTS, version=lambda: "bench@1", file=Path("prompts.yaml"))


def test_a_right_line_is_only_filled_in(world: World) -> None:
    check = checked(world)
    for record in world.records:
        assert check.fill(record) == record
        short = dataclasses.replace(record, prompt="")
        assert check.fill(short if record.method == "base" else dataclasses.replace(short, class_noun="")) == record


def test_prompts_of_ones_own_stay_as_they_are(world: World) -> None:
    own = dataclasses.replace(world.records[-1], prompt_id="prompt-00", prompt="something else")
    assert checked(world).fill(own) == own


def test_a_photo_and_a_version_that_fit_are_accepted(world: World) -> None:
    subject = world.subjects[0]
    record = next(r for r in world.records if r.identity == subject.identity)
    digest = hashlib.sha256(subject.reference.read_bytes()).hexdigest()
    right = dataclasses.replace(record, reference_sha256=digest, benchmark="bench@1")
    assert checked(world).fill(right) == right


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"benchmark": "bench@2"}, r"another version of it; expected bench@1; got bench@2; key: benchmark"),
        ({"class_noun": "man"}, "another class than the person; expected woman; got man"),
        ({"prompt": "a photo of a woman"}, r"other words than the benchmark's; .*got 'a photo of a woman'"),
        ({"reference_sha256": "0" * 64}, r"another photo than the benchmark's reference; .*key: benchmark\.root"),
        ({"method": "base", "class_noun": "", "identity": "base"}, "is of no class; expected class_noun"),
        ({"identity": "anne"}, "of somebody who is not in the benchmark; .*such as ann; got anne; key: benchmark"),
    ],
)
def test_a_line_of_something_else_is_refused(world: World, change: dict, told: str) -> None:
    record = next(r for r in world.records if r.identity == "ann")
    with pytest.raises(UserError, match=told):
        checked(world).fill(dataclasses.replace(record, **change))


def cells(world: World) -> tuple[set, set]:
    of_people = {(r.identity, r.prompt_id, r.seed) for r in world.records if r.method != "base"}
    return of_people, {(r.class_noun, r.prompt_id, r.seed) for r in world.records if r.method == "base"}


def test_a_whole_folder_is_whole(world: World) -> None:
    wanted, base = cells(world)
    found = coverage(world.records, wanted=wanted, base=base)
    assert found.whole and found.lines() == [] and found.beyond == 0


def test_missing_and_doubled_cells_are_listed_by_method(world: World) -> None:
    wanted, base = cells(world)
    lost = next(r for r in world.records if (r.method, r.identity, r.iterations) == ("lora", "cid", 375))
    twice = next(r for r in world.records if (r.method, r.identity, r.iterations) == ("lora_aug", "ann", 625))
    base_lost = next(r for r in world.records if r.method == "base")
    extra = dataclasses.replace(twice, file="more.png", seed=9)
    records = [r for r in world.records if r not in (lost, base_lost)]
    records += [dataclasses.replace(twice, file="again.png"), extra]
    found = coverage(records, wanted=wanted, base=base)
    assert not found.whole and found.beyond == 1
    assert found.lines() == [
        f"missing: base fake@1, 3 steps, guidance 3.5, {base_lost.class_noun}: {base_lost.prompt_id} seed 0",
        f"missing: lora rank 1 at 375, cid: {lost.prompt_id} seed 0",
        f"more than once: lora_aug rank 1 at 625, ann: {twice.prompt_id} seed 0",
    ]
    told = str(found.error())
    assert "2 missing and 1 more than once" in told and "key: images, allow_missing" in told and "\n" not in told


def test_checkpoints_of_a_method_without_a_rank_are_counted_apart(world: World) -> None:
    wanted, base = cells(world)
    records = [dataclasses.replace(r, method="dreambooth", rank=0) for r in world.records if r.method == "lora"]
    assert {record.iterations for record in records} == {375, 625}
    assert coverage(records, wanted=wanted, base=base).whole
    half = {375: sorted(wanted)[::2], 625: sorted(wanted)[1::2]}
    halves = [r for r in records if (r.identity, r.prompt_id, r.seed) in half[r.iterations]]
    found = coverage(halves, wanted=wanted, base=base)
    assert found.missing == {f"dreambooth at {at}": tuple(half[1000 - at]) for at in (375, 625)}
    assert not any(found.doubled.values())


def test_a_method_whose_name_begins_like_the_bases_is_not_the_base(world: World) -> None:
    wanted, base = cells(world)
    records = [dataclasses.replace(r, method="base v2", rank=0) for r in world.records if r.method == "lora"]
    found = coverage(records, wanted=wanted, base=base)
    assert found.whole and found.beyond == 0


def test_a_person_left_out_altogether_is_missing(world: World) -> None:
    wanted, base = cells(world)
    found = coverage([r for r in world.records if r.identity != "dan"], wanted=wanted, base=base)
    assert sum(map(len, found.missing.values())) == 3 * 2 * 2  # methods, iterations, prompts
    assert all("dan" in line for line in found.lines())


def bases_in_two_folders(world: World, folder: Path) -> tuple[list[Path], list]:
    """The world's images, and a second folder with nothing but a copy of its bases."""
    bases = [record for record in world.records if record.method == "base"]
    for record in bases:
        (folder / record.file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(world.images / record.file, folder / record.file)
    write_manifest(folder / "manifest.jsonl", bases)
    return [world.images, folder], bases


def test_the_same_base_in_two_folders_is_one(world: World, tmp_path: Path) -> None:
    folders, bases = bases_in_two_folders(world, tmp_path / "other")
    wanted, base = cells(world)
    records = every_line(folders)
    assert records == list(world.records)
    assert coverage(records, wanted=wanted, base=base).whole
    moved = dataclasses.replace(bases[0], steps=4)  # another base, whatever it looks like
    write_manifest(tmp_path / "other" / "manifest.jsonl", [moved])
    assert len(every_line(folders)) == len(world.records) + 1


def test_two_different_bases_of_one_name_are_refused_with_their_files(world: World, tmp_path: Path) -> None:
    folders, bases = bases_in_two_folders(world, tmp_path / "other")
    files = [folder / bases[3].file for folder in folders]
    paint(files[1], (9, 99, 9))
    with pytest.raises(UserError, match="two different images of the untouched base") as caught:
        every_line(folders)
    assert caught.value.got == f"{files[0]} and {files[1]}" and "fake@1, 3 steps, guidance 3.5" in caught.value.expected
    wanted, base = cells(world)
    found = coverage(every_line(folders, bases_may_differ=True), wanted=wanted, base=base)
    assert [sum(map(len, faults.values())) for faults in (found.missing, found.doubled)] == [0, 1]


def test_a_method_that_is_there_twice_stays_doubled(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.images, tmp_path / "other")
    wanted, base = cells(world)
    found = coverage(every_line([world.images, tmp_path / "other"]), wanted=wanted, base=base)
    assert {name.split()[0] for name, doubled in found.doubled.items() if doubled} == {"lora", "lora_aug", "meta_lora"}


def test_a_file_outside_its_folder_is_refused(world: World) -> None:
    record = dataclasses.replace(world.records[0], file="../x.png")
    write_manifest(world.images / "manifest.jsonl", [record])
    with pytest.raises(UserError, match=r"outside its folder; expected files in it; got \.\./x\.png; key: images"):
        every_line([world.images])


def test_one_file_for_two_images_is_refused(world: World, tmp_path: Path) -> None:
    one, other = [r for r in world.records if r.identity == "ann"][:2]
    write_manifest(world.images / "manifest.jsonl", [one, one])
    assert len(every_line([world.images])) == 2  # the same line twice counts as a doubled cell
    clash = dataclasses.replace(other, file=one.file)
    (world.images / "manifest.jsonl").write_text(to_line(one) + to_line(clash))
    with pytest.raises(UserError, match=r"two lines name one file .* for ann, front-0, seed 0 and for ann, front-1"):
        every_line([world.images])
