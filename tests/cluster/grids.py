"""A small grid run by any launcher, and what has to be equal between two of them."""

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.testing import assert_frame_equal

from metalora.core.atomic import write_json
from metalora.core.lease import is_alive, owner
from metalora.running.cells import Cell, Standing, cells_of

GRID = (
    "experiment=mini/tradeoff",
    "iterations=2,30",
    "rank=1",
    "method=lora,lora_aug,meta_lora",
    "meta_rank=4",
    "people.count=4",
    "people.photos=5",
    "stage1.batch_size=4",
    "stage1.q_bucket=5",
    "stage1.q_warmup=2",
    "stage1.q_total=6",
    "class_noun=woman",
    "sampling.steps=2",
    "protocol.several_photo_people=2",
    "protocol.single_photo_people=1",
    "protocol.frontal_prompts=2",
    "protocol.clip_prompts=2",
    "trainer.threads=1",
    "trainer.checkpoint_seconds=1",
)
"""Three trajectories of three people, two cells on each; those of Meta-LoRA share a prior, which one of them trains."""
CELLS = 6


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


def same(one: Path, other: Path) -> dict[str, float]:
    """Priors, LoRAs and images are the same bit for bit, scores within 1e-6: faces are embedded in batches.

    Returns:
        how many of each were compared, and the largest difference of a score.
    """
    found: dict[str, float] = {}
    patterns = {
        "priors": "meta-train/*/prior.safetensors",
        "LoRAs": "personalize/*/*/*.safetensors",
        "images": "generate/*/images/**/*.png",
    }
    for what, pattern in patterns.items():
        files = [sorted((outputs / "tradeoff").glob(pattern)) for outputs in (one, other)]
        names = [
            [path.relative_to(outputs) for path in found] for outputs, found in zip((one, other), files, strict=True)
        ]
        assert names[0] == names[1]
        assert all(left.read_bytes() == right.read_bytes() for left, right in zip(*files, strict=True))
        found[what] = len(names[0])
    tables = [sorted((outputs / "tradeoff" / "evaluate").glob("*/scores.parquet")) for outputs in (one, other)]
    assert [path.parent.name for path in tables[0]] == [path.parent.name for path in tables[1]]
    assert len(tables[0]) == CELLS and found["priors"] == 1 and found["LoRAs"] == 3 * CELLS and found["images"] > CELLS
    found |= {"score tables": CELLS, "scores": 0, "largest difference of a score": 0.0}
    for left, right in zip(*tables, strict=True):
        frames = [pd.read_parquet(path) for path in (left, right)]
        assert_frame_equal(frames[0], frames[1], rtol=0, atol=1e-6)
        numbers = [frame.select_dtypes("number") for frame in frames]
        found["scores"] += int(numbers[0].notna().to_numpy().sum())
        far = float((numbers[0] - numbers[1]).abs().max().max())
        found["largest difference of a score"] = max(found["largest difference of a score"], far)
    return found


def record(cluster: str, part: str, **facts: Any) -> None:
    """Write what was found into the folder that METALORA_RESULTS names, one file a cluster and day."""
    if not (folder := os.environ.get("METALORA_RESULTS")):
        return
    path = Path(folder) / f"{cluster}-{time.strftime('%Y-%m-%d')}.json"
    earlier = json.loads(path.read_text()) if path.is_file() else {}
    write_json(
        path,
        earlier
        | {
            "command": f"make test-{cluster}",
            "grid": " ".join(GRID),
            "cells": CELLS,
            "compared with": "the basic launcher: priors, LoRAs and images bit for bit, scores within 1e-6",
            "load": [round(load, 1) for load in os.getloadavg()],
            "cores": os.cpu_count(),
            "versions": {"python": platform.python_version()} | dict(sorted(_versions(cluster))),
            part: facts,
        },
    )


def _versions(cluster: str) -> Iterator[tuple[str, str]]:
    for name in ("torch", "hydra-core", "ray", "hydra-ray-launcher", "submitit", "hydra-submitit-launcher"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            yield name, metadata.version(name)
    if cluster == "slurm" and (program := shutil.which("slurmctld")):
        yield "slurm", subprocess.run([program, "-V"], capture_output=True, text=True, check=True).stdout.split()[-1]


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
