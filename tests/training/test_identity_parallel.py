"""Stage 1 in several processes: the run of one process, and nothing sent but what the design says."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks_together import Together, together
from training_runs import STAGE1, make_people

from metalora.adapters.artifacts import load_prior
from metalora.core.schedule import BucketPlan
from metalora.people.sampler import IdentityBucketSampler
from metalora.people.share import Share
from metalora.training.checkpoints import read_state

SETTINGS: dict[str, Any] = {"people": 11, "uses_per_example": 8 * 4 / 24, "log_every": 5}
"""Buckets of 3, 4 and 4 people, batches of 4, four visits: with 4 processes some have nobody, or no sample."""
BALANCE = {"reuse": {"balance": 2}}
"""What is balanced, beside what slots start from."""

TOLERANCE = 5e-5
"""Largest difference of any number that training moves by 1e-2 per iteration, over 30 iterations; measured 4e-6."""


def plan() -> BucketPlan:
    keys = ("q_bucket", "q_warmup", "q_total", "batch_size", "uses_per_example", "seed")
    return BucketPlan({one.identity: 6 for one in make_people(11)}, **{key: (STAGE1 | SETTINGS)[key] for key in keys})


def loads_of(slots: str, *, world: int, balance: int) -> list[tuple[int, ...]]:
    """Samples of every process in every iteration, from the schedule alone."""
    sampler = IdentityBucketSampler(plan(), make_people(11), slots=slots, balance=balance)
    share = Share(plan(), slots, rank=0, world=world)
    return [tuple(share.loads(sampler.samples(iteration))) for iteration in range(plan().q_total)]


def largest(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def rows_of(run: Together, iteration: int) -> dict[str, torch.Tensor]:
    """Everybody's row after an iteration, from whichever process has it."""
    rows: dict[str, torch.Tensor] = {}
    for seen in run.seen:
        assert not rows.keys() & seen["rows"][iteration].keys()
        rows |= seen["rows"][iteration]
    return rows


@pytest.fixture(scope="module")
def alone(tiny_flux_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Together]:
    """The run of one process, by what slots start from."""
    folder = tmp_path_factory.mktemp("alone")
    return {
        slots: together(1, tiny_flux_dir, folder / slots, slots=slots, **SETTINGS | BALANCE.get(slots, {}))
        for slots in ("reset", "persist", "reuse")
    }


@pytest.mark.parametrize(("world", "slots"), [(2, "reset"), (4, "reset"), (4, "persist"), (2, "reuse")])
def test_several_processes_are_one(
    tiny_flux_dir: Path, tmp_path: Path, alone: dict[str, Together], world: int, slots: str
) -> None:
    settings = SETTINGS | BALANCE.get(slots, {})
    one, many = alone[slots], together(world, tiny_flux_dir, tmp_path / "many", slots=slots, **settings)
    assert one.statuses + many.statuses == [0] * (1 + world), many.told
    (whole,) = one.seen
    assert [sum(counts) for counts in zip(*(s["samples"] for s in many.seen), strict=True)] == whole["samples"]
    assert world == 2 or any(0 in seen["samples"] for seen in many.seen)
    loads = {balance: loads_of(slots, world=world, balance=balance) for balance in (1, 2)}
    assert list(zip(*(s["samples"] for s in many.seen), strict=True)) == loads[settings.get("balance", 1)]
    assert loads[1] != loads[2]
    gaps = {"meta_down": 0.0, "rows": 0.0, "losses": 0.0}
    for iteration, meta_down in enumerate(whole["meta_down"]):
        for seen in many.seen:  # bit for bit the same in every process
            assert torch.equal(seen["meta_down"][iteration], many.seen[0]["meta_down"][iteration])
        gaps["meta_down"] = max(gaps["meta_down"], largest(many.seen[0]["meta_down"][iteration], meta_down))
        ours, rows = rows_of(many, iteration), whole["rows"][iteration]
        assert ours.keys() == rows.keys()
        gaps["rows"] = max(gaps["rows"], *(largest(ours[identity], rows[identity]) for identity in rows))
        loss = sum(seen["losses"][iteration] for seen in many.seen)
        gaps["losses"] = max(gaps["losses"], abs(loss - whole["losses"][iteration]))
    print(f"largest differences with {world} processes, {slots}: {gaps}")
    assert max(gaps.values()) <= TOLERANCE, gaps
    moved = largest(whole["meta_down"][0], whole["meta_down"][-1])
    assert moved > 0.01  # there was something to differ in
    for name in ("metrics.csv", "speed.csv"):
        assert (many.out / name).read_text().count("\n") == 1 + 6
    for ours, theirs in zip(table(many.out), table(one.out), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)


def table(out: Path) -> list[list[float]]:
    with (out / "metrics.csv").open() as file:
        return [[float(value) for value in row.values()] for row in csv.DictReader(file)]


def test_only_meta_downs_gradient_is_sent_and_nothing_in_warm_up(tiny_flux_dir: Path, tmp_path: Path) -> None:
    run = together(2, tiny_flux_dir, tmp_path / "run", **SETTINGS)
    schedule, size = plan(), 4 * len(run.seen[0]["meta_down"][0])
    for seen in run.seen:
        for iteration, messages in enumerate(seen["messages"][:-1]):  # the last one saves
            wanted = [] if schedule.visit(iteration).warm_up else [("all_reduce", size)]
            if (iteration + 1) % SETTINGS["log_every"] == 0:  # norms of rows, Mid and Up, losses, samples, three wishes
                wanted += [("all_reduce", 12), ("all_reduce", 4 * 5), ("all_reduce", 4), ("all_reduce", 12)]
            assert messages == wanted, iteration


@pytest.mark.parametrize(("before", "after"), [(1, 2), (4, 2), (2, 1)])
@pytest.mark.parametrize("slots", ["reset", "persist"])
def test_a_run_goes_on_with_another_number_of_processes(
    tiny_flux_dir: Path, tmp_path: Path, alone: dict[str, Together], before: int, after: int, slots: str
) -> None:
    out = tmp_path / "run"
    first = together(before, tiny_flux_dir, out, slots=slots, **SETTINGS | {"q_total": 13})  # inside a visit, off a row
    state = read_state(out / "last.ckpt")
    assert state is not None and state.iterations == 13
    whole = alone[slots].seen[0]
    saved = torch.load(out / "last.ckpt", weights_only=True)
    rows = saved["state_dict"]["bank.rows"]
    assert len(rows) == (11 if slots == "persist" else 4)
    names = (
        sorted(one.identity for one in make_people(11))
        if slots == "persist"
        else plan().buckets[plan().visit(12).bucket]
    )
    for row, identity in zip(rows, names, strict=False):
        assert largest(row, whole["rows"][12][identity]) <= TOLERANCE
    moments = saved["optimizer_states"][0]["state"]
    assert {name: len(values) for name, values in moments[max(moments)].items()} == dict.fromkeys(
        ("step", "exp_avg", "exp_avg_sq"), len(rows)
    )
    second = together(after, tiny_flux_dir, out, slots=slots, **SETTINGS)
    assert first.statuses + second.statuses == [0] * (before + after), second.told
    assert len(second.seen[0]["samples"]) == 30 - 13
    assert largest(second.seen[0]["meta_down"][-1], whole["meta_down"][-1]) <= TOLERANCE
    final, uncut = rows_of(second, -1), whole["rows"][-1]
    assert final.keys() == uncut.keys() and max(largest(final[name], uncut[name]) for name in uncut) <= TOLERANCE
    prior, expected = load_prior(out / "prior.safetensors"), load_prior(alone[slots].out / "prior.safetensors")
    assert prior.metadata == expected.metadata
    assert max(largest(prior.meta_down[name], expected.meta_down[name]) for name in expected.meta_down) <= TOLERANCE
    for ours, theirs in zip(table(out), table(alone[slots].out), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_process_ends_the_others_and_loses_little(
    tiny_flux_dir: Path, tmp_path: Path, alone: dict[str, Together], lost: int
) -> None:
    out = tmp_path / "run"
    settings = SETTINGS | {"checkpoint_every": 5}
    run = together(2, tiny_flux_dir, out, moments={lost: ("kill", 12)}, timeout=20.0, **settings)
    assert run.statuses[lost] == -9 and run.statuses[1 - lost] == 2
    assert "has lost another one" in run.told[1 - lost] and "trainer.devices" in run.told[1 - lost]
    state = read_state(out / "last.ckpt")
    assert state is not None and state.iterations >= 5
    assert not (out / "prior.safetensors").exists()
    again = together(2, tiny_flux_dir, out, **SETTINGS)
    assert again.statuses == [0, 0] and len(again.seen[0]["samples"]) == 30 - state.iterations
    assert largest(again.seen[0]["meta_down"][-1], alone["reset"].seen[0]["meta_down"][-1]) <= TOLERANCE


def test_a_process_that_does_not_answer_is_waited_for_a_while(tiny_flux_dir: Path, tmp_path: Path) -> None:
    run = together(2, tiny_flux_dir, tmp_path / "run", moments={1: ("freeze", 12)}, timeout=4.0, **SETTINGS)
    assert run.statuses == [2, 2]
    assert "has lost another one" in run.told[0] and "an answer within 4 s" in run.told[0]


@pytest.mark.parametrize(("moment", "status"), [("interrupt", 130), ("terminate", 143)])
def test_one_process_asked_to_stop_stops_all_at_one_iteration_saved(
    tiny_flux_dir: Path, tmp_path: Path, moment: str, status: int
) -> None:
    out = tmp_path / "run"
    run = together(2, tiny_flux_dir, out, moments={1: (moment, 7)}, **SETTINGS)
    assert run.statuses == [status, status], run.told
    state = read_state(out / "last.ckpt")
    assert state is not None and {len(seen["samples"]) for seen in run.seen} == {state.iterations}
    assert state.iterations in (
        10,
        15,
    )  # when a row of metrics is due: the seventh forward of process 1 is not the last


def test_more_processes_than_people_of_a_bucket_are_refused(tiny_flux_dir: Path, tmp_path: Path) -> None:
    run = together(2, tiny_flux_dir, tmp_path / "run", people=3, uses_per_example=8 * 4 / 6)
    assert run.statuses == [2, 2]
    assert all("more processes than people" in told for told in run.told)
