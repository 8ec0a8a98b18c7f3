"""The grid on a real Slurm cluster of one node: the scores of the basic launcher, also when a worker is killed."""

import importlib.util
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from grids import CELLS, finish, record, same, standings, start, sweep_with_a_kill

from experiments.cluster.local_slurm import missing_programs, running

MISSING = missing_programs()
if importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher") is None:
    MISSING.append("metalora[slurm]")
if os.geteuid() != 0:
    MISSING.append("root")
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        os.environ.get("METALORA_SLURM") != "required",
        reason="make test-slurm" + (f"; not here: {', '.join(MISSING)}" if MISSING else ""),
    ),
]
WORDS = (
    "hydra/launcher=slurm",
    "hydra.launcher.gpus_per_node=null",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=2",
)


@pytest.fixture(scope="module")
def slurm() -> Iterator[Mapping[str, str]]:
    assert not MISSING, f"not here: {', '.join(MISSING)} (Debian: apt install slurmctld slurmd slurm-client munge)"
    with running() as environment:
        yield environment


def test_a_slurm_array_gives_the_scores_of_one_process(basic: Path, slurm: Mapping[str, str]) -> None:
    outputs, begun = basic.parent / "slurm", time.monotonic()
    assert finish(start(outputs, *WORDS, environment=slurm), outputs) == 0, (outputs / "err").read_text()[-3000:]
    assert [standing.state for _, standing in standings(outputs)] == ["done"] * CELLS
    seconds = round(time.monotonic() - begun, 1)
    record("slurm", "the grid", seconds=seconds, same=same(basic, outputs))


def test_a_killed_worker_costs_nothing_but_time(basic: Path, slurm: Mapping[str, str]) -> None:
    outputs, begun = basic.parent / "slurm-killed", time.monotonic()
    statuses = sweep_with_a_kill(outputs, WORDS, slurm)
    assert statuses[-1] == 0, (outputs / "err").read_text()[-3000:]
    seconds = round(time.monotonic() - begun, 1)
    record("slurm", "kill -9 of a worker", seconds=seconds, exit_statuses=statuses, same=same(basic, outputs))
