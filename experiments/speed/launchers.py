"""A small grid by several launchers: wall seconds, overhead per job, and what a killed worker costs.

    python -m experiments.speed.launchers [launchers=basic,joblib,ray] [iterations=20,60]

Two methods x the iterations x one class on the mini world. *Apart*: every cell in outputs of its own, so nothing is
shared but the rendered people. *Overhead per job*: the same grid again with its cells forgotten but all that they made
there: every job starts, finds its work done and ends. *Killed*: SIGKILL to a worker when it has saved a first state;
what the launcher does about it, and the same command once more where it gave up, is in the seconds. Every number is of
one run: on a machine that others use only the ratios within it mean something.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from experiments.cluster import local_ray
from experiments.speed.measuring import command, settings_of, write
from metalora.core.lease import is_alive, owner

GRID = (
    "experiment=mini/tradeoff",
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
DEFAULTS = {"launchers": "basic,joblib,ray", "iterations": "20,60"}
WORDS = {
    "basic": (),
    "joblib": ("hydra/launcher=workers",),
    "ray": (
        "hydra/launcher=ray_cluster",
        "hydra.launcher.ray.remote.num_gpus=0",
        "hydra.launcher.ray.remote.num_cpus=1",
        "hydra.launcher.ray.remote.memory=1000000",
    ),
}


def main(arguments: list[str]) -> None:
    """Measure and write results/launchers-DATE.json."""
    given = settings_of(arguments, DEFAULTS)
    launchers, iterations = given["launchers"].split(","), given["iterations"]
    jobs = 2 * len(iterations.split(","))
    folder = Path(tempfile.mkdtemp(prefix="launchers-"))
    data = os.environ.get("METALORA_DATA", str(folder / "data"))
    result: dict[str, dict[str, float | list[int]]] = {}
    try:
        with contextlib.ExitStack() as stack:
            environment = dict(stack.enter_context(local_ray.running())) if "ray" in launchers else {}
            own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}

            def run(outputs: Path, *words: str, kill: bool = False) -> tuple[float, list[int]]:
                return sweep(
                    outputs, f"iterations={iterations}", f"paths.data={data}", *words, environment=own, kill=kill
                )

            run(folder / "first")  # people and the renderer's compiled code are there from here on
            for name in launchers:
                words = WORDS[name]
                seconds, _ = run(folder / name, *words)
                shutil.rmtree(folder / name / "tradeoff" / "cells")
                again, _ = run(folder / name, *words)
                killed, statuses = run(folder / f"{name}-killed", *words, kill=True)
                result[name] = {
                    "seconds": round(seconds, 1),
                    "overhead_per_job_seconds": round(again / jobs, 2),
                    "with_a_killed_worker_seconds": round(killed, 1),
                    "exit_statuses_with_a_killed_worker": statuses,
                }
            apart = 0.0
            for method in ("lora", "lora_aug"):
                for count in iterations.split(","):
                    one = (f"method={method}", f"iterations={count}")
                    apart += run(folder / f"{method}-{count}", *one)[0]
            result["basic, apart"] = {"seconds": round(apart, 1)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    write(
        "launchers",
        {
            "jobs": jobs,
            "iterations": iterations,
            "load_average": os.getloadavg()[0],
            **_versions(),
            "launchers": result,
        },
    )


def sweep(outputs: Path, *words: str, environment: Mapping[str, str], kill: bool) -> tuple[float, list[int]]:
    """Wall seconds until the grid is done, and the exit statuses of the commands that took."""
    sweeping = [sys.executable, "-m", "metalora", "personalize", "-m", *GRID, *words]
    begun, statuses = time.monotonic(), list[int]()
    while not statuses or (statuses[-1] != 0 and len(statuses) < 4):
        process = subprocess.Popen(
            sweeping,
            env=os.environ | environment | {"METALORA_OUTPUTS": str(outputs)},
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        if kill and not statuses:
            for pid in trainers(outputs, process):
                os.kill(pid, signal.SIGKILL)
                break
        statuses.append(process.wait())
    assert statuses[-1] == 0, f"{sweeping} ends with {statuses}"
    return time.monotonic() - begun, statuses


def trainers(outputs: Path, process: "subprocess.Popen[bytes]") -> Iterator[int]:
    """Processes that train a trajectory and have saved a state, as they appear."""
    while process.poll() is None:
        for state in outputs.glob("*/personalize/*/cohort-*/last.ckpt"):
            lease = state.parent.parent / ".lease"
            found = owner(lease)
            if found is not None and is_alive(lease, found):
                yield found.pid
        time.sleep(0.01)


def _versions() -> dict[str, dict[str, str]]:
    found = {}
    for package in ("hydra-core", "hydra-joblib-launcher", "joblib", "hydra-ray-launcher", "ray"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return {"launcher_versions": found}


if __name__ == "__main__":
    command("launchers", main)
