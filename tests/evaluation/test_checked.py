"""Folders of any method against the benchmark: every line, and every cell once."""

import dataclasses
import hashlib
from pathlib import Path

import pytest
from fake_world import World, make_world

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


def test_a_person_left_out_altogether_is_missing(world: World) -> None:
    wanted, base = cells(world)
    found = coverage([r for r in world.records if r.identity != "dan"], wanted=wanted, base=base)
    assert sum(map(len, found.missing.values())) == 3 * 2 * 2  # methods, iterations, prompts
    assert all("dan" in line for line in found.lines())


def test_one_file_for_two_images_is_refused(world: World, tmp_path: Path) -> None:
    one, other = [r for r in world.records if r.identity == "ann"][:2]
    write_manifest(world.images / "manifest.jsonl", [one, one])
    assert len(every_line([world.images])) == 2  # the same line twice counts as a doubled cell
    clash = dataclasses.replace(other, file=one.file)
    (world.images / "manifest.jsonl").write_text(to_line(one) + to_line(clash))
    with pytest.raises(UserError, match=r"two lines name one file .* for ann, front-0, seed 0 and for ann, front-1"):
        every_line([world.images])
