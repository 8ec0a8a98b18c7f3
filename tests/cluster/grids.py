"""A small grid run by any launcher, and what has to be equal between two of them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from pandas.testing import assert_frame_equal

from metalora.core.lease import is_alive, owner
from metalora.tasks.cells import Cell, Standing, cells_of

GRID = (
    "experiment=mini/tradeoff",
    "iterations=2,30",
    "rank=1",
    "method=lora,lora_aug",
    "class_noun=woman",
    "sampling.steps=2",
    "protocol.several_photo_people=2",
    "protocol.single_photo_people=1",
    "protocol.frontal_prompts=2",
    "protocol.clip_prompts=2",
    "trainer.threads=1",
    "trainer.checkpoint_seconds=1",
)
"""Two trajectories of three people, two cells on each."""
CELLS = 4


def start(outputs: Path, *words: str, environment: Mapping[str, str]) -> "subprocess.Popen[str]":
    """Type the sweep; what all outputs share lies beside them."""
    command = [sys.executable, "-m", "metalora", "personalize", "-m", *GRID, *words]
    outputs.mkdir(parents=True, exist_ok=True)
    own = {"METALORA_OUTPUTS": str(outputs), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    data = os.environ.get("METALORA_DATA", str(outputs.parent / "data"))  # people that are rendered already
    with (outputs / "err").open("a") as err:
        return subprocess.Popen(
            [*command, f"paths.data={data}"],
            stderr=err,
            text=True,
            env=os.environ | environment | own,
        )


def finish(process: "subprocess.Popen[str]", outputs: Path, *, seconds: float = 1500) -> int:
    """Wait for the sweep; returns its exit status."""
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait(timeout=60)
        raise AssertionError((outputs / "err").read_text()[-3000:]) from None


def standings(outputs: Path) -> list[tuple[Cell, Standing]]:
    """How the cells stand."""
    return [(cell, cell.standing()) for cell in cells_of(outputs / "tradeoff")]


def assert_same(one: Path, other: Path) -> None:
    """LoRAs and images of two outputs are the same, bit for bit; scores within 1e-6: faces are embedded in batches."""
    compared = 0
    for pattern in ("personalize/*/*/*.safetensors", "generate/*/images/**/*.png"):
        files = [sorted((outputs / "tradeoff").glob(pattern)) for outputs in (one, other)]
        names = [
            [path.relative_to(outputs) for path in found] for outputs, found in zip((one, other), files, strict=True)
        ]
        assert names[0] == names[1]
        assert all(left.read_bytes() == right.read_bytes() for left, right in zip(*files, strict=True))
        compared += len(names[0])
    tables = [sorted((outputs / "tradeoff" / "evaluate").glob("*/scores.parquet")) for outputs in (one, other)]
    assert [path.parent.name for path in tables[0]] == [path.parent.name for path in tables[1]]
    assert len(tables[0]) == CELLS and compared > CELLS
    for left, right in zip(*tables, strict=True):
        frames = [pd.read_parquet(path) for path in (left, right)]
        assert_frame_equal(frames[0], frames[1], rtol=0, atol=1e-6)


def kill_a_trainer(outputs: Path, process: "subprocess.Popen[str]", *, seconds: float = 900) -> int:
    """SIGKILL to a process that trains a trajectory and has saved a state; returns its number."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        for state in (outputs / "tradeoff" / "personalize").glob("*/cohort-*/last.ckpt"):
            lease = state.parent.parent / ".lease"
            found = owner(lease)
            if found is not None and is_alive(lease, found):
                os.kill(found.pid, signal.SIGKILL)
                return found.pid
        time.sleep(0.01)
    raise AssertionError(f"nobody trained: {(outputs / 'err').read_text()[-3000:]}")


def sweep_with_a_kill(outputs: Path, words: Sequence[str], environment: Mapping[str, str]) -> list[int]:
    """The sweep, one of its workers killed, the same command again if need be; returns the exit statuses."""
    process = start(outputs, *words, environment=environment)
    try:
        kill_a_trainer(outputs, process)
    except AssertionError:
        process.terminate()
        raise
    statuses = [finish(process, outputs)]
    if statuses[0]:
        statuses.append(finish(start(outputs, *words, environment=environment), outputs))
    return statuses
