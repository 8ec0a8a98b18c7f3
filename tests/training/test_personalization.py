"""Stage 2: Meta-Down never moves, a cohort equals single runs, a short run is the start of a long one."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from training_runs import STAGE2, before_call, make_people, make_prior, make_texts, same_file, stage2

from metalora.adapters.artifacts import load_lora
from metalora.adapters.bank import AdapterBank
from metalora.backbones.backbone import DiffusersBackbone
from metalora.core.contracts import TrainingPerson
from metalora.core.errors import UserError
from metalora.training import personalization
from metalora.training.trainer import fit


class LastState(Callback):
    """Keeps bank and optimizer of the end of a run."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bank: AdapterBank = pl_module.bank
        self.optimizer = trainer.optimizers[0]
        self.keys = set(pl_module.state_dict())


def count_fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    starts: list[int] = []

    def counted(module: Any, data: Any, **options: Any) -> None:
        starts.append(len(data.train_dataloader().state_dict()))
        fit(module, data, **options)

    monkeypatch.setattr(personalization, "fit", counted)
    return starts


def test_meta_down_never_moves_and_has_no_optimizer_state(tiny_backbone: DiffusersBackbone, tmp_path: Path) -> None:
    last = LastState()
    stage2(tiny_backbone, tmp_path, iterations=[6], callbacks=[last])
    prior = make_prior(tiny_backbone)
    for name, meta_down in prior.meta_down.items():
        assert torch.equal(last.bank.meta_down_of(name), meta_down)
    assert list(last.optimizer.state) == [last.bank.rows]
    assert last.bank.rows.requires_grad and all(value.requires_grad for value in last.bank.meta_down.values())


def test_a_checkpoint_holds_the_bank_and_nothing_of_the_base(tiny_backbone: DiffusersBackbone, tmp_path: Path) -> None:
    last = LastState()
    stage2(tiny_backbone, tmp_path, iterations=[2], callbacks=[last])
    (path,) = tmp_path.glob("cohort-*/last.ckpt")
    state = torch.load(path, weights_only=True)  # plain values and tensors only
    assert set(state["state_dict"]) == last.keys
    assert all(key.startswith(("bank.meta_down.", "bank.rows")) for key in last.keys)
    assert state["loops"]["fit_loop"]["state_dict"]["combined_loader"] == [{"batches": 2}]
    assert set(state["hyper_parameters"]["configuration"]) == {"p0", "p1", "p2"}


@pytest.mark.parametrize(
    "settings", [{"gradient_clip": 0.01}, {"method": "lora_aug", "batch_size": 2}], ids=["meta_lora", "lora_aug"]
)
def test_a_cohort_gives_everybody_the_lora_of_training_alone(
    tiny_backbone: DiffusersBackbone, tmp_path: Path, settings: dict[str, Any]
) -> None:
    people = make_people(3)
    settings = settings | {"iterations": [20]}
    together = stage2(tiny_backbone, tmp_path / "together", people=people, **settings)
    for person in people:
        alone = stage2(tiny_backbone, tmp_path / "alone", people=[person], **settings)
        one, other = (load_lora(run.loras[person.identity][20]) for run in (together, alone))
        for part in ("down", "up"):
            for name, tensor in getattr(one, part).items():
                reference = getattr(other, part)[name]
                assert reference.any()
                # Batched products round differently; after 20 steps of AdamW that is 4e-5 of a layer's largest weight.
                assert (tensor - reference).abs().max() <= 4e-4 * reference.abs().max(), (part, name)


def test_cohorts_are_split_by_size_and_by_shapes(tiny_backbone: DiffusersBackbone, tmp_path: Path) -> None:
    people = make_people(4)
    square = people[3]
    people[3] = TrainingPerson(square.identity, square.caption, square.images[:3])  # one shape only
    result = stage2(tiny_backbone, tmp_path, people=people, iterations=[2], cohort_size=2)
    assert result.trained == ("p0", "p1", "p2", "p3")
    assert len(list(tmp_path.glob("cohort-*/roster.json"))) == 3
    assert all(path.is_file() for paths in result.loras.values() for path in paths.values())


def test_a_short_run_is_the_start_of_a_long_one(
    tiny_backbone: DiffusersBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = stage2(tiny_backbone, tmp_path / "long", iterations=[5, 10, 15])
    stage2(tiny_backbone, tmp_path / "grown", iterations=[5])
    steps: list[int] = []
    predict = tiny_backbone.predict
    monkeypatch.setattr(tiny_backbone, "predict", lambda *a, **k: steps.append(1) or predict(*a, **k))
    grown = stage2(tiny_backbone, tmp_path / "grown", iterations=[5, 10, 15])
    assert len(steps) == 10  # the first five were not trained again
    for identity, paths in long.loras.items():
        for iterations, path in paths.items():
            assert same_file(path, grown.loras[identity][iterations])


def test_an_earlier_checkpoint_rewinds_nothing(
    tiny_backbone: DiffusersBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uncut = stage2(tiny_backbone, tmp_path / "uncut", iterations=[3, 5, 12, 15])
    stage2(tiny_backbone, tmp_path / "grown", iterations=[12])
    (state,) = (tmp_path / "grown").glob("cohort-*/last.ckpt")
    kept = {path: path.read_bytes() for path in (state, state.with_name("metrics.csv"))}
    steps: list[int] = []
    predict = tiny_backbone.predict
    monkeypatch.setattr(tiny_backbone, "predict", lambda *a, **k: steps.append(1) or predict(*a, **k))

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    recorder = Recorder()
    with monkeypatch.context() as patch:
        patch.setattr(tiny_backbone, "predict", before_call(tiny_backbone.predict, 2, interrupt))
        with pytest.raises(KeyboardInterrupt):
            stage2(tiny_backbone, tmp_path / "grown", iterations=[5], logger=recorder)
    stage2(tiny_backbone, tmp_path / "grown", iterations=[5], logger=recorder)
    assert len(steps) == 5  # cut after two, three to go
    assert {path: path.read_bytes() for path in kept} == kept  # nor did a cut run touch them
    assert not recorder.sent  # it was told once
    steps.clear()
    grown = stage2(tiny_backbone, tmp_path / "grown", iterations=[3, 15])
    assert len(steps) == 3 + 3  # the first three anew, and 13 to 15 from the state
    assert [path.name for path in state.parent.iterdir() if path.is_dir()] == []
    (whole,) = (tmp_path / "uncut").glob("cohort-*/metrics.csv")
    assert same_file(state.with_name("metrics.csv"), whole)
    for identity, paths in uncut.loras.items():
        for iterations, path in paths.items():
            assert same_file(path, grown.loras[identity][3].with_name(path.name)), iterations


def test_what_is_there_is_not_trained_again(
    tiny_backbone: DiffusersBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = stage2(tiny_backbone, tmp_path, people=2, iterations=[2, 4])
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    fits = count_fits(monkeypatch)
    assert stage2(tiny_backbone, tmp_path, people=2, iterations=[2, 4]).trained == ()
    assert not fits
    more = stage2(tiny_backbone, tmp_path, people=3, iterations=[4, 2])  # one more person, the others are left alone
    assert more.trained == ("p2",) and len(fits) == 1
    assert first.loras.items() <= more.loras.items()
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_a_cohort_cut_between_two_exports_goes_on_as_the_same_cohort(
    tiny_backbone: DiffusersBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uncut = stage2(tiny_backbone, tmp_path / "uncut", iterations=[4])

    def cut() -> None:
        raise RuntimeError("cut")

    with monkeypatch.context() as patch:
        patch.setattr(personalization, "save_lora", before_call(personalization.save_lora, 2, cut))
        with pytest.raises(RuntimeError, match="cut"):
            stage2(tiny_backbone, tmp_path / "cut", iterations=[4])
    assert len(list((tmp_path / "cut").rglob("*.safetensors"))) == 1
    resumed = stage2(tiny_backbone, tmp_path / "cut", iterations=[4])
    assert resumed.trained == ("p0", "p1", "p2")
    for identity, paths in uncut.loras.items():
        assert same_file(paths[4], resumed.loras[identity][4])


def test_a_lora_that_was_deleted_is_made_again(tiny_backbone: DiffusersBackbone, tmp_path: Path) -> None:
    result = stage2(tiny_backbone, tmp_path, people=2, iterations=[2, 4])
    lost = result.loras["p1"][2]
    before = lost.read_bytes()
    lost.unlink()
    assert stage2(tiny_backbone, tmp_path, people=2, iterations=[2, 4]).trained == ("p0", "p1")
    assert lost.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"learning_rate": 2e-2}, "learning_rate"), ({"rank": 1}, "rank"), ({"method": "lora_aug"}, "method, prior")],
)
def test_a_folder_of_another_configuration_is_refused_and_left_alone(
    tiny_backbone: DiffusersBackbone, tmp_path: Path, changes: dict[str, Any], key: str
) -> None:
    stage2(tiny_backbone, tmp_path, people=1, iterations=[2])

    def content() -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.parent.name != ".lease"}

    before = content()
    for iterations in ([2], [3]):  # the LoRA is there; only the state is
        with pytest.raises(UserError, match=f"key: {key}"):
            stage2(tiny_backbone, tmp_path, people=1, iterations=iterations, **changes)
    assert content() == before


def test_other_photos_of_the_same_name_are_another_configuration(
    tiny_backbone: DiffusersBackbone, tmp_path: Path
) -> None:
    stage2(tiny_backbone, tmp_path, people=1, iterations=[2])
    (person,) = make_people(1)
    fewer = TrainingPerson(person.identity, person.caption, person.images[1:])
    latents = person.images[0].latents_2CHW.clone()
    latents[1, 2, 3, 1] += 1e-3  # any one number
    retouched = replace(person, images=(replace(person.images[0], latents_2CHW=latents), *person.images[1:]))
    for other in (fewer, retouched):
        with pytest.raises(UserError, match="photos"):
            stage2(tiny_backbone, tmp_path, people=[other], iterations=[2])


def test_captions_are_embedded_once_and_their_encoders_leave(
    tiny_backbone: DiffusersBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    texts = make_texts()
    monkeypatch.setattr(tiny_backbone, "encode_text", lambda captions: calls.append("encode") or texts[captions[0]])
    monkeypatch.setattr(tiny_backbone, "release_encoders", lambda: calls.append("release"))
    personalization.run_personalization(
        tiny_backbone,
        make_people(2),
        out=tmp_path,
        **STAGE2 | {"method": "lora", "prior": None, "iterations": [1], "cohort_size": 1},
    )
    assert calls[:2] == ["encode", "release"] and calls.count("encode") == 1


def test_a_refused_rank_leaves_nothing_that_refuses_the_right_one(
    tiny_backbone: DiffusersBackbone, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="rank"):
        stage2(tiny_backbone, tmp_path, people=1, iterations=[1], rank=5)
    stage2(tiny_backbone, tmp_path, people=1, iterations=[1], rank=4)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"prior": None}, "prior"),
        ({"method": "dreambooth"}, "method"),
        ({"iterations": []}, "iterations"),
        ({"iterations": [0, 5]}, "iterations"),
        ({"people": 0}, "image"),
        ({"meta_rank": 8}, "meta_rank"),
        ({"rank": 0}, "rank"),
        ({"batch_size": 0}, "batch_size"),
        ({"cohort_size": 0}, "cohort_size"),
        ({"learning_rate": -0.01}, "learning_rate"),
        ({"weight_decay": -0.01}, "weight_decay"),
        ({"gradient_clip": 0.0}, "gradient_clip"),
    ],
)
def test_what_cannot_be_is_refused_by_key(
    tiny_backbone: DiffusersBackbone, tmp_path: Path, changes: dict[str, Any], key: str
) -> None:
    with pytest.raises(UserError, match=rf"key: {key}\b"):
        stage2(tiny_backbone, tmp_path, **changes)


def test_the_file_says_how_it_was_made(tiny_backbone: DiffusersBackbone, tmp_path: Path) -> None:
    result = stage2(tiny_backbone, tmp_path, people=1, iterations=[2], metadata={"class_noun": "woman"})
    metadata = load_lora(result.loras["p0"][2]).metadata
    expected = {"identity": "p0", "iterations": "2", "rank": "2", "method": "meta_lora", "class_noun": "woman"}
    assert expected.items() <= metadata.items()


def test_everybody_has_their_own_class_noun(tiny_backbone: DiffusersBackbone, tmp_path: Path) -> None:
    nouns = {"p0": "woman", "p1": "man"}
    result = stage2(tiny_backbone, tmp_path, people=2, iterations=[2], class_nouns=nouns)
    assert {name: load_lora(paths[2]).metadata["class_noun"] for name, paths in result.loras.items()} == nouns


class Recorder(Logger):
    """Keeps whatever a logger would send away."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Any] = []

    name, version = "recorder", "0"

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        self.sent.append(params)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.sent.append(metrics)


def test_a_logger_is_sent_numbers_and_no_names(tiny_backbone: DiffusersBackbone, tmp_path: Path) -> None:
    recorder = Recorder()
    stage2(tiny_backbone, tmp_path, people=2, iterations=[2], logger=recorder, log_every=1)
    assert recorder.sent
    values = [value for sent in recorder.sent for value in sent.values()]
    assert values and all(isinstance(value, int | float) for value in values)
