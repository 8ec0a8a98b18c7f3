"""Stage 1: what moves when, who sits where, when it ends, and the loss curve at a seed."""

import copy
import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from training_runs import STAGE1, make_people, make_texts, same_file, stage1

from metalora.adapters.artifacts import load_prior
from metalora.adapters.bank import AdapterBank
from metalora.adapters.inject import layer_shapes
from metalora.backbones.backbone import DiffusersBackbone
from metalora.core.contracts import Batch, TrainingPerson
from metalora.core.errors import UserError
from metalora.core.schedule import BucketPlan
from metalora.training.checkpoints import read_state
from metalora.training.meta_training import run_meta_training

# Loss of the first twelve iterations of `stage1` (tiny random FLUX of tests/conftest.py, seed 0).
GOLDEN = [
    2.4809239, 2.253999, 2.5959144, 2.5872607, 2.1363595, 2.687721,
    2.2703848, 2.1816745, 2.2295022, 2.220511, 2.3943281, 2.2874374,
]  # fmt: skip


class Probe(Callback):
    """Copies bank and optimizer state before and after every iteration."""

    def __init__(self) -> None:
        self.before: list[dict[str, Any]] = []
        self.after: list[dict[str, Any]] = []
        self.batches: list[Batch] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self.before.append(self._copy(trainer, pl_module))
        self.batches.append(batch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.after.append(self._copy(trainer, pl_module))

    @staticmethod
    def _copy(trainer: Trainer, pl_module: Any) -> dict[str, Any]:
        bank: AdapterBank = pl_module.bank
        state = trainer.optimizers[0].state
        return {
            "rows": bank.rows.detach().clone(),
            "identities": list(bank.identities),
            "meta_down": [value.detach().clone() for value in bank.meta_down.values()],
            "meta_state": copy.deepcopy([dict(state.get(value, {})) for value in bank.meta_down.values()]),
            "row_state": copy.deepcopy(dict(state.get(bank.rows, {}))),
        }


def plan(people: int = 6) -> BucketPlan:
    keys = ("q_bucket", "q_warmup", "q_total", "batch_size", "uses_per_example", "seed")
    return BucketPlan({one.identity: 6 for one in make_people(people)}, **{key: STAGE1[key] for key in keys})


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def probe() -> Probe:
    return Probe()


def test_meta_down_stands_still_bit_for_bit_in_every_warm_up_and_moves_afterwards(
    tiny_backbone: DiffusersBackbone, tmp_path: Path, probe: Probe
) -> None:
    stage1(tiny_backbone, tmp_path, callbacks=[probe])
    schedule = plan()
    assert len(schedule.buckets) == 3 and schedule.visits == 4
    for iteration, (before, after) in enumerate(zip(probe.before, probe.after, strict=True)):
        same = equal(before["meta_down"], after["meta_down"]) and equal(before["meta_state"], after["meta_state"])
        if schedule.visit(iteration).warm_up:
            assert same, iteration
        else:
            assert not any(torch.equal(a, b) for a, b in zip(before["meta_down"], after["meta_down"], strict=True))
            assert not equal(before["meta_state"], after["meta_state"])
    for after, before in zip(probe.after, probe.before[1:], strict=False):  # nor does it move between iterations
        assert equal(after["meta_down"], before["meta_down"]) and equal(after["meta_state"], before["meta_state"])


def test_only_the_rows_of_the_batch_move(tiny_backbone: DiffusersBackbone, tmp_path: Path, probe: Probe) -> None:
    stage1(tiny_backbone, tmp_path, callbacks=[probe], batch_size=1, uses_per_example=8 / 12)
    for batch, before, after in zip(probe.batches, probe.before, probe.after, strict=True):
        present = {sample.row for sample in batch.samples}
        for row in range(len(before["rows"])):
            assert torch.equal(before["rows"][row], after["rows"][row]) == (row not in present)


def test_the_run_ends_exactly_at_q_total(tiny_backbone: DiffusersBackbone, tmp_path: Path, probe: Probe) -> None:
    path = stage1(tiny_backbone, tmp_path, callbacks=[probe], q_total=13)  # inside the second visit
    assert [batch.iteration for batch in probe.batches] == list(range(13))
    prior = load_prior(path)
    assert prior.metadata["iterations"] == "13" and prior.meta_rank == 4
    layers = tiny_backbone.target_layers()
    assert equal([prior.meta_down[name] for name in layers], probe.after[-1]["meta_down"])


def test_reset_slots_start_every_visit_afresh(tiny_backbone: DiffusersBackbone, tmp_path: Path, probe: Probe) -> None:
    stage1(tiny_backbone, tmp_path, callbacks=[probe], slots="reset")
    schedule = plan()
    fresh = AdapterBank(layer_shapes(tiny_backbone.target_layers()), identities=["a", "b"], rank=1, meta_rank=4, seed=0)
    for visit in range(4):
        bucket = schedule.buckets[schedule.visit(visit * 8).bucket]
        fresh.reset_rows(bucket, visit=visit)
        start = probe.before[visit * 8]
        assert torch.equal(start["rows"], fresh.rows) and start["identities"] == list(bucket)
        assert all(not bool(value.any()) for value in start["row_state"].values())


def test_reused_slots_go_on_with_numbers_and_moments(
    tiny_backbone: DiffusersBackbone, tmp_path: Path, probe: Probe
) -> None:
    stage1(tiny_backbone, tmp_path, callbacks=[probe], slots="reuse")
    schedule = plan()
    assert probe.before[0]["rows"].any(dim=1).all()
    for visit in range(1, 4):
        end, start = probe.after[visit * 8 - 1], probe.before[visit * 8]
        assert torch.equal(start["rows"], end["rows"]) and equal(start["row_state"], end["row_state"])
        assert start["identities"] == list(schedule.buckets[schedule.visit(visit * 8).bucket])
        assert start["identities"] != end["identities"]


def test_persisting_identities_keep_their_own(tiny_backbone: DiffusersBackbone, tmp_path: Path, probe: Probe) -> None:
    stage1(tiny_backbone, tmp_path, callbacks=[probe], slots="persist")
    schedule = plan()
    names = probe.before[0]["identities"]
    assert len(names) == len(probe.before[0]["rows"]) == 6
    for visit in range(3):
        start, end = probe.before[visit * 8], probe.after[visit * 8 + 7]
        present = {names.index(name) for name in schedule.buckets[schedule.visit(visit * 8).bucket]}
        for row in range(6):
            assert torch.equal(start["rows"][row], end["rows"][row]) == (row not in present)
            assert end["row_state"]["step"][row] >= 1 or row not in present
        later = probe.before[visit * 8 + 8]  # the next visit finds everybody as this one left them
        assert torch.equal(later["rows"], end["rows"]) and equal(later["row_state"], end["row_state"])
    assert probe.before[24]["row_state"]["step"].min() >= 7  # everybody has had one visit


def test_every_image_of_a_bucket_is_used_equally(
    tiny_backbone: DiffusersBackbone, tmp_path: Path, probe: Probe
) -> None:
    stage1(tiny_backbone, tmp_path, callbacks=[probe], q_total=8)
    uses = [(sample.identity, sample.image) for batch in probe.batches for sample in batch.samples]
    counts = {use: uses.count(use) for use in uses}
    assert len(counts) == 12 and set(counts.values()) <= {2, 3}  # 32 uses of 12 images


def test_a_photo_at_two_resolutions_counts_once(tiny_backbone: DiffusersBackbone, tmp_path: Path) -> None:
    people = [
        TrainingPerson(
            one.identity, one.caption, tuple(replace(image, source=image.source[-1]) for image in one.images)
        )
        for one in make_people(6)
    ]
    assert {len({image.source for image in one.images}) for one in people} == {3}
    told: list[str] = []
    run_meta_training(
        tiny_backbone, people, texts=make_texts(), out=tmp_path, say=told.append, **STAGE1 | {"q_total": 8}
    )
    assert told[0].startswith("6 people in 2 bucket(s) of 3, 1 visit(s), 0.50 pass(es)")  # by images: 3 buckets of 2
    assert "3 people are never trained" in told[0]


def test_golden_loss_curve(tiny_backbone: DiffusersBackbone, tmp_path: Path) -> None:
    stage1(tiny_backbone, tmp_path, q_total=12)
    with (tmp_path / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file)]
    assert losses == pytest.approx(GOLDEN, rel=1e-4)


def test_what_is_there_is_not_made_again(tiny_backbone: DiffusersBackbone, tmp_path: Path, probe: Probe) -> None:
    path = stage1(tiny_backbone, tmp_path, q_total=8, prior_every=4)
    stamps = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir() if file.is_file()}
    assert {"prior-000004.safetensors", "prior-000008.safetensors"} <= {file.name for file in stamps}
    assert stage1(tiny_backbone, tmp_path, q_total=8, prior_every=4, callbacks=[probe]) == path
    assert not probe.batches
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir() if file.is_file()} == stamps


def test_a_longer_run_goes_on_where_a_shorter_one_ended(
    tiny_backbone: DiffusersBackbone, tmp_path: Path, probe: Probe
) -> None:
    uncut = stage1(tiny_backbone, tmp_path / "uncut", q_total=20)
    stage1(tiny_backbone, tmp_path / "grown", q_total=11)
    grown = stage1(tiny_backbone, tmp_path / "grown", q_total=20, callbacks=[probe])
    assert [batch.iteration for batch in probe.batches] == list(range(11, 20))
    assert same_file(grown, uncut)
    assert (tmp_path / "grown/metrics.csv").read_text() == (tmp_path / "uncut/metrics.csv").read_text()


def test_priors_of_before_the_state_are_trained_aside(
    tiny_backbone: DiffusersBackbone, tmp_path: Path, probe: Probe
) -> None:
    stage1(tiny_backbone, tmp_path / "uncut", q_total=24, prior_every=8)
    folder, told = tmp_path / "cut", []
    stage1(tiny_backbone, folder, q_total=20)
    (folder / "prior.safetensors").unlink()  # as if stopped at 20 of 24
    state, metrics = (folder / "last.ckpt").read_bytes(), (folder / "metrics.csv").read_bytes()

    def stop_at(end: int) -> Callback:
        class Stop(Callback):
            def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
                if trainer.global_step == end:
                    raise KeyboardInterrupt

        return Stop()

    with pytest.raises(KeyboardInterrupt):
        stage1(
            tiny_backbone,
            folder,
            q_total=24,
            prior_every=8,
            checkpoint_every=10,
            say=told.append,
            callbacks=[stop_at(12)],
        )
    assert "iteration 20 are missing" in told[-1]
    assert (folder / "last.ckpt").read_bytes() == state and (folder / "metrics.csv").read_bytes() == metrics
    stage1(tiny_backbone, folder, q_total=24, prior_every=8, callbacks=[probe])
    assert [batch.iteration for batch in probe.batches] == list(range(10, 24))  # nor is that begun again
    assert read_state(folder / "last.ckpt") == read_state(tmp_path / "uncut/last.ckpt")
    made = {path.name for path in folder.iterdir()}
    assert made == {path.name for path in (tmp_path / "uncut").iterdir()}
    for name in made - {".lease", "last.ckpt"}:
        assert same_file(folder / name, tmp_path / "uncut" / name), name


def test_a_shorter_run_leaves_a_longer_ones_state(
    tiny_backbone: DiffusersBackbone, tmp_path: Path, probe: Probe
) -> None:
    uncut = stage1(tiny_backbone, tmp_path / "uncut", q_total=20)
    folder = tmp_path / "cut"
    stage1(tiny_backbone, folder, q_total=12).unlink()
    short = stage1(tiny_backbone, folder, q_total=8)
    assert load_prior(short).metadata["iterations"] == "8" and read_state(folder / "last.ckpt").iterations == 12
    assert same_file(stage1(tiny_backbone, folder, q_total=20, callbacks=[probe]), uncut)
    assert [batch.iteration for batch in probe.batches] == list(range(12, 20))


def test_one_prior_of_two_names_is_trained_once(tiny_backbone: DiffusersBackbone, tmp_path: Path, probe: Probe) -> None:
    final = stage1(tiny_backbone, tmp_path, q_total=8)
    named = tmp_path / "prior-000008.safetensors"
    stage1(tiny_backbone, tmp_path, q_total=8, prior_every=8, callbacks=[probe])
    assert same_file(final, named)
    final.unlink()
    stage1(tiny_backbone, tmp_path, q_total=8, prior_every=8, callbacks=[probe])
    assert same_file(final, named)
    named.unlink()
    stage1(tiny_backbone, tmp_path, q_total=16, prior_every=8, callbacks=[probe])
    assert load_prior(named).metadata["iterations"] == "8"
    named.replace(final)  # killed between the two files of iteration 16
    stage1(tiny_backbone, tmp_path, q_total=16, prior_every=8, callbacks=[probe])
    assert [load_prior(path).metadata["iterations"] for path in (named, final)] == ["8", "16"]
    assert [batch.iteration for batch in probe.batches] == list(range(8, 16))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"learning_rate": 2e-2}, "stage1.learning_rate"),
        ({"seed": 1}, "seed"),
        ({"slots": "reuse"}, "stage1.slots"),
        ({"people": 5}, "people"),
        ({"q_warmup": 4}, "stage1.q_warmup"),
    ],
)
def test_a_folder_of_another_configuration_is_refused_and_left_alone(
    tiny_backbone: DiffusersBackbone, tmp_path: Path, changes: dict[str, Any], key: str
) -> None:
    path = stage1(tiny_backbone, tmp_path, q_total=5)
    before = path.read_bytes()
    for q_total in (5, 9):
        with pytest.raises(UserError, match=key):
            stage1(tiny_backbone, tmp_path, q_total=q_total, **changes)
    path.unlink()  # the state alone knows it as well
    with pytest.raises(UserError, match=key):
        stage1(tiny_backbone, tmp_path, q_total=9, **changes)
    path.write_bytes(before)
    with pytest.raises(UserError, match="longer run"):
        stage1(tiny_backbone, tmp_path, q_total=4)
    assert path.read_bytes() == before


def test_a_rank_above_r1_and_unknown_slots_are_refused(tiny_backbone: DiffusersBackbone, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rank"):
        stage1(tiny_backbone, tmp_path, rank=5)
    with pytest.raises(UserError, match=r"key: stage1\.gradient_clip"):
        stage1(tiny_backbone, tmp_path, gradient_clip=0.0)
    with pytest.raises(UserError, match=r"stage1\.slots"):
        stage1(tiny_backbone, tmp_path, slots="forget")
    assert "forward" not in vars(next(iter(tiny_backbone.target_layers().values())))
