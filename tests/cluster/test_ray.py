"""The grid on a real Ray cluster of two raylets: the scores of the basic launcher, also when a worker is killed."""

import importlib.util
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from grids import CELLS, finish, record, same, standings, start, sweep_with_a_kill

from experiments.cluster.local_ray import is_installed, running

MISSING = [] if is_installed() and importlib.util.find_spec("hydra_plugins.hydra_ray_launcher") else ["metalora[ray]"]
pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(
        os.environ.get("METALORA_RAY") != "required",
        reason="make test-ray" + (f"; not here: {', '.join(MISSING)}" if MISSING else ""),
    ),
]
WORDS = (
    "hydra/launcher=ray_cluster",
    "hydra.launcher.ray.remote.num_gpus=0",
    "hydra.launcher.ray.remote.num_cpus=1",
    "hydra.launcher.ray.remote.memory=1000000",
)


@pytest.fixture(scope="module")
def ray() -> Iterator[Mapping[str, str]]:
    assert not MISSING, f"not here: {', '.join(MISSING)}"
    with running() as environment:
        yield environment


def test_two_raylets_give_the_scores_of_one_process(basic: Path, ray: Mapping[str, str]) -> None:
    outputs, begun = basic.parent / "ray", time.monotonic()
    assert finish(start(outputs, *WORDS, environment=ray), outputs) == 0, (outputs / "err").read_text()[-3000:]
    assert [standing.state for _, standing in standings(outputs)] == ["done"] * CELLS
    seconds = round(time.monotonic() - begun, 1)
    record("ray", "the grid", seconds=seconds, same=same(basic, outputs))


def test_a_killed_worker_costs_nothing_but_time(basic: Path, ray: Mapping[str, str]) -> None:
    outputs, begun = basic.parent / "ray-killed", time.monotonic()
    statuses = sweep_with_a_kill(outputs, WORDS, ray)
    assert statuses[-1] == 0, (outputs / "err").read_text()[-3000:]
    seconds = round(time.monotonic() - begun, 1)
    record("ray", "kill -9 of a worker", seconds=seconds, exit_statuses=statuses, same=same(basic, outputs))
