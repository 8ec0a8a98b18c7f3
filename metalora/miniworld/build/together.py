"""A training on several processes of this machine: they step together, the first one saves and logs."""

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch.multiprocessing as multiprocessing

from metalora.miniworld.build.loop import Plan, run_steps


class Stepper(Protocol):
    """One process's part of a training."""

    def step(self, step: int) -> None:
        """Do this process's part of a step; every process must call it."""
        ...


def train_together(
    make: Callable[..., Stepper],
    *,
    workers: int,
    arguments: Mapping[str, Any],
    name: str,
    plan: Plan,
    start: int,
    stop: int,
    told: Callable[[], Mapping[str, float]],
    save: Callable[[int, float], None],
    seconds_before: float,
    log: Path,
    batch: int,
    quiet: bool = False,
) -> float:
    """Run steps `start` to `stop` on `workers` processes, this one among them.

    Args:
        make: called in each process as `make(rank, barrier=..., **arguments)`; a name of a module, as the others are
            spawned.
        arguments: what is large must be in shared memory.
        told: the values of the last step, to log.
        save: called with (steps done, seconds of training so far).

    Returns:
        Seconds of training, those before a resume included.
    """
    context = multiprocessing.get_context("spawn")
    barrier: Any = context.Barrier(workers) if workers > 1 else threading.Barrier(1)
    given = dict(arguments) | {"barrier": barrier}
    others = [
        context.Process(target=_work, args=(rank, os.getpid(), start, stop, make, given), daemon=True)
        for rank in range(1, workers)
    ]
    for process in others:
        process.start()
    first = make(0, **given)

    def one_step(step: int) -> Mapping[str, float]:
        first.step(step)
        return told()

    seconds = run_steps(
        name=name,
        plan=plan,
        start=start,
        stop=stop,
        one_step=one_step,
        save=save,
        seconds_before=seconds_before,
        log=log,
        batch=batch,
        quiet=quiet,
    )
    for process in others:
        process.join()
    return seconds


def _work(
    rank: int, parent: int, start: int, stop: int, make: Callable[..., Stepper], arguments: dict[str, Any]
) -> None:
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    worker = make(rank, **arguments)
    for step in range(start, stop):
        worker.step(step)


def _die_with(parent: int) -> None:
    """End this process when its parent is gone: a killed training must not leave a worker waiting at the barrier."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
