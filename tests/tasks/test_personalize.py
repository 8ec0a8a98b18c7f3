"""Personalizing a folder of people: everybody's own class noun, and artifacts that know what they depend on."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metalora.adapters.artifacts import load_lora
from metalora.backbones.backbone import DiffusersBackbone
from metalora.core.contracts import Box, DetectedFace
from metalora.core.errors import UserError
from metalora.people.folder import PersonFolder
from metalora.running.setting import Setting
from metalora.running.shards import shard_of
from metalora.tasks.personalize import artifact_of, personalize
from metalora.training.checkpoints import read_state
from metalora.training.cohorts import lora_path


class OneFace:
    """A face in the middle of every picture."""

    def detect(self, images: Any) -> list[list[DetectedFace]]:
        return [[DetectedFace(Box(10, 10, 30, 30), 0.99)] for _ in images]


@pytest.fixture
def setting(tiny_backbone: DiffusersBackbone, tmp_path: Path) -> Setting:
    setting = Setting(
        {
            "name": "test",
            "out": None,
            "paths": {"outputs": str(tmp_path / "outputs"), "cache": str(tmp_path / "cache")},
            "backbone": {"name": "tiny", "dtype": "float32"},
            "method": {"name": "lora", "crops": False, "flips": False, "prior": False},
            "resolutions": [16],
            "meta_rank": 4,
            "rank": 1,
            "iterations": [1],
            "learning_rate": 1e-3,
            "gradient_clip": 1.0,
            "batch_size": 1,
            "cohort_size": 4,
            "seed": 0,
            "trainer": {"device": "cpu", "checkpoint_seconds": 60.0},
            "memory": {"name": "auto", "budget_gb": None, "checkpointing": "auto", "offload": "auto"},
            "logger": {"name": "csv", "samples": 0, "sample_prompts": None},
            "scorer": {"detector": {"threshold": 0.9}},
        }
    )
    setting.backbone, setting.detector = tiny_backbone, OneFace()
    return setting


def make_people(folder: Path, nouns: dict[str, str | None]) -> list[PersonFolder]:
    people = []
    for number, (identity, noun) in enumerate(nouns.items()):
        photo = folder / identity / "0.png"
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 40, 3), 60 + number, dtype=np.uint8)).save(photo)
        people.append(PersonFolder(identity, noun, (photo,)))
    return people


def test_a_lora_tells_the_class_noun_of_its_own_caption(setting: Setting, tmp_path: Path) -> None:
    people = make_people(tmp_path, {"ann": None, "ben": "man"})
    folder = personalize(
        setting, people=people, class_noun="woman", label="all", prior=None, progress=lambda stage, done, total: None
    )
    for identity, noun in (("ann", "woman"), ("ben", "man")):
        metadata = load_lora(lora_path(folder, identity, 1)).metadata
        assert metadata["class_noun"] == noun
        assert metadata["caption"] == f"a photo of a {noun}"


def test_an_artifact_depends_on_class_nouns_and_on_how_faces_are_found(setting: Setting, tmp_path: Path) -> None:
    def digest(nouns: dict[str, str | None], *, class_noun: str = "woman", **choice: Any) -> str:
        people = make_people(tmp_path, nouns)
        return artifact_of(setting, people=people, class_noun=class_noun, label="all", prior=None, **choice).hash

    told = digest({"ann": "woman", "ben": "man"}, face="only")
    assert digest({"ann": None, "ben": "man"}, face="only") == told  # the same words, wherever they come from
    assert digest({"ann": "woman", "ben": "man"}, class_noun="person") == told
    assert digest({"ann": "woman", "ben": None}) != told
    assert digest({"ann": "woman", "ben": "man"}, face="largest") != told
    setting.values["scorer"] = {"detector": {"threshold": 0.5}}
    assert digest({"ann": "woman", "ben": "man"}, face="only") != told


def test_checkpoints_are_no_part_of_a_trajectory(setting: Setting, tmp_path: Path) -> None:
    """750 iterations continue the 250 that are there: the iterations axis trains each trajectory once."""
    people = make_people(tmp_path, {"ann": "woman"})
    choice = {"people": people, "class_noun": "woman", "label": "all", "prior": None}
    short = artifact_of(setting, **choice)
    setting.values["iterations"] = [250, 750]
    assert artifact_of(setting, **choice).folder == short.folder
    setting.values["learning_rate"] = 2e-3
    assert artifact_of(setting, **choice).folder != short.folder


def test_a_manifest_tells_every_checkpoint_of_its_trajectory(setting: Setting, tmp_path: Path) -> None:
    people = make_people(tmp_path, {"ann": "woman"})
    for iterations in ([3], [2], [1, 3]):
        setting.values["iterations"] = iterations
        _, manifest = told(setting, people)
    assert manifest["iterations"] == [1, 2, 3]
    (card,) = (tmp_path / "outputs").rglob("ann/README.md")
    assert all(f"lora-{count:06d}" in card.read_text() for count in (1, 2, 3))
    (state,) = (tmp_path / "outputs").rglob("last.ckpt")
    assert read_state(state).iterations == 3
    lost = lora_path(card.parents[1], "ann", 2)
    lost.unlink()
    setting.values["iterations"] = [4]
    assert told(setting, people)[1]["iterations"] == [1, 3, 4]


def told(setting: Setting, people: list[PersonFolder], **memory: Any) -> tuple[list[str], dict[str, Any]]:
    """What a run with these memory settings says, and its manifest."""
    setting.values["memory"] = setting.values["memory"] | memory
    said: list[str] = []
    options: dict[str, Any] = {"class_noun": "woman", "label": "all", "prior": None}
    folder = personalize(setting, people=people, progress=lambda *_: None, say=said.append, **options)
    return said, json.loads((folder / "manifest.json").read_text())


def test_the_expected_peak_is_told_before_and_kept(setting: Setting, tmp_path: Path) -> None:
    people = make_people(tmp_path, {"ann": None, "ben": None})
    said, manifest = told(setting, people)
    assert not said and "planned_peak_mb" not in manifest  # a CPU without a budget
    people = make_people(tmp_path / "more", {"cia": None})
    said, manifest = told(setting, people, budget_gb=2)
    assert len(said) == 1 and said[0].startswith("memory: an expected peak of ") and "weights" in said[0]
    assert manifest["memory"] == "nothing saved" and manifest["planned_peak_mb"] == 0  # less than one MB
    people = make_people(tmp_path / "most", {"dan": None})
    said, manifest = told(setting, people, budget_gb=2, checkpointing="all")
    assert manifest["memory"] == "all blocks checkpointed"


def test_what_will_not_fit_is_told_before_anything_is_trained(setting: Setting, tmp_path: Path) -> None:
    people = make_people(tmp_path, {"ann": None})
    message = r"does not fit.*expected at most 9.5e-07 GiB.*memory=16gb.*got an expected peak of.*key: memory"
    with pytest.raises(UserError, match=message):
        told(setting, people, name="24gb", budget_gb=1 + 2**-20)
    assert not list((tmp_path / "outputs").rglob("*.safetensors"))
    for wrong in ("much", 0, True):
        with pytest.raises(UserError, match=r"no budget; expected GiB.*key: memory.budget_gb"):
            told(setting, people, budget_gb=wrong)


def test_fewer_bits_are_another_artifact(setting: Setting, tmp_path: Path) -> None:
    people = make_people(tmp_path, {"ann": "woman"})
    choice: dict[str, Any] = {"people": people, "class_noun": "woman", "label": "all", "prior": None}
    plain = artifact_of(setting, **choice)
    before = setting.backbone.memory
    try:
        setting.backbone.memory = replace(before, checkpointing="all")
        assert artifact_of(setting, **choice).hash == plain.hash
        setting.backbone.memory = replace(before, quantization="int8")
        other = artifact_of(setting, **choice)
        assert other.hash != plain.hash and other.config["backbone"]["quantization"] == "int8"
    finally:
        setting.backbone.memory = before


def trained(setting: Setting, people: Any, progress: Any = lambda *_: None, **changes: Any) -> Path:
    """Everybody's LoRAs as plain LoRA; `changes` are values of the setting."""
    changed = setting.changed(**changes)
    changed.backbone, changed.detector = setting.backbone, setting.detector
    return personalize(changed, people=people, class_noun="man", label="all", prior=None, progress=progress)


def test_jobs_on_one_trajectory_share_it(setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One trains to 8 iterations, another comes in between and wants 4: it waits, gets them, and trains nothing."""
    people = make_people(tmp_path / "people", {"ann": None, "bob": None})
    alone = trained(setting, people, iterations=[4], name="alone")
    forwards, waited = [], []
    predict = setting.backbone.predict
    begun, asked, served = threading.Event(), threading.Event(), threading.Event()

    def slowly(*arguments: Any, **options: Any) -> Any:
        forwards.append(1)
        if len(forwards) == 3:
            begun.set()
            assert asked.wait(60)
        if len(forwards) == 7:
            assert served.wait(60)
        return predict(*arguments, **options)

    monkeypatch.setattr(setting.backbone, "predict", slowly)

    def waiting(stage: str, done: int, total: int) -> None:
        waited.append(stage)
        asked.set()

    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(trained, setting, people, iterations=[8])
        assert begun.wait(60)
        short = trained(setting, people, waiting, iterations=[4])
        assert not long.done()
        served.set()
        assert long.result() == short
    assert len(waited) == 1 and waited[0].startswith("wait for ")
    assert len(forwards) == 8
    for person in people:
        files = [lora_path(folder, person.identity, 4) for folder in (short, alone)]
        assert files[0].read_bytes() == files[1].read_bytes()
    trained(setting, people, iterations=[12])  # and who wants more goes on
    assert len(forwards) == 12


@pytest.mark.parametrize("parts", [2, 3])
def test_parts_of_many_people_get_the_loras_of_the_whole(setting: Setting, tmp_path: Path, parts: int) -> None:
    """Bit for bit, as a part is made of whole cohorts; in other cohorts within rounding."""
    people = make_people(tmp_path / "people", dict.fromkeys("abcdefg"))
    several = {"iterations": [20], "cohort_size": 3}
    whole = trained(setting, people, **several)
    for part in range(1, parts + 1):
        shard = shard_of(setting.changed(shard=f"{part}/{parts}", cohort_size=3), people)
        folder = trained(setting, shard.people, **several)
        assert folder != whole
        for person in shard.people:
            files = [lora_path(where, person.identity, 20) for where in (folder, whole)]
            assert files[0].read_bytes() == files[1].read_bytes()
    together = trained(setting, people, iterations=[20], cohort_size=7, name="together")
    for person in people:
        one, other = (load_lora(lora_path(where, person.identity, 20)) for where in (whole, together))
        for mine, theirs in ((one.down, other.down), (one.up, other.up)):
            for name, weight in mine.items():
                assert (weight - theirs[name]).abs().max() <= 1e-3 * weight.abs().max()
