"""What Hydra's launchers lack. The plugins of submitit and Ray raise at the first lost job and leave the others to
themselves, running or queued; joblib ends its workers with SIGKILL at a Ctrl-C, and when one of them ends by itself."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from metalora.core.errors import INTERRUPTED


@contextlib.contextmanager
def awaiting_all(launcher: object) -> Iterator[None]:
    """Inside, a launcher waits for the last of its jobs.

    Raises:
        Exception: what the first of the lost jobs raised, at the end.
    """
    errors: list[Exception] = []

    def awaited(result: Any, nothing: Any) -> Any:
        def wait(job: Any) -> Any:
            try:
                return result(job)
            except Exception as error:
                errors.append(error)
                return nothing

        return wait

    plugin = type(launcher).__module__
    with contextlib.ExitStack() as stack:
        if plugin.startswith("hydra_plugins.hydra_submitit_launcher"):
            from submitit import Job

            stack.enter_context(patch.object(Job, "results", awaited(Job.results, [None])))
        elif plugin.startswith("hydra_plugins.hydra_ray_launcher"):
            import ray
            from hydra_plugins.hydra_ray_launcher import _core

            stack.enter_context(patch.object(_core, "ray", SimpleNamespace(get=awaited(ray.get, None))))
        yield
    if errors:
        raise errors[0]


@contextlib.contextmanager
def ctrl_c_left_to_workers(launcher: object) -> Iterator[None]:
    """Inside, Ctrl-C is for joblib's workers alone (`in_worker`): each saves what it trains; a second one stops it now.

    Raises:
        KeyboardInterrupt: at the end, if there was one.
    """
    if not is_joblib(launcher) or not hasattr(signal, "sigtimedwait"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # processes and threads begin with it held back
    from multiprocessing import resource_tracker

    from joblib.externals.loky.backend import resource_tracker as loky

    for tracker in (resource_tracker, loky):
        tracker.ensure_running()  # its start lets signals in
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    over, heard = threading.Event(), []

    def listen() -> None:
        while not over.is_set():
            if (found := signal.sigtimedwait({signal.SIGINT}, 0.2)) is None:
                continue
            if not heard:
                text = "metalora: the workers save what they train; Ctrl-C again stops now"
                print(text, file=sys.stderr, flush=True)
            heard.append(found)
            if found.si_code <= 0:  # somebody's kill: a terminal tells the workers itself
                for child in multiprocessing.active_children():
                    with contextlib.suppress(ProcessLookupError):
                        if child.pid is not None:  # 0 would mean every process of ours
                            os.kill(child.pid, signal.SIGINT)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    finally:
        over.set()
        listener.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if heard:
        raise KeyboardInterrupt


def is_joblib(launcher: object) -> bool:
    """Whether a launcher, or its class by name, is joblib's."""
    name = launcher if isinstance(launcher, str) else type(launcher).__module__
    return name.startswith("hydra_plugins.hydra_joblib_launcher")


_ASKED = False


def in_worker(cell: Callable[[], object]) -> None:
    """Run a cell in one of joblib's workers. Only meanwhile does Ctrl-C raise: a worker that ended while it waits for a
    cell would take the others with it. Asked once, it runs no further cell."""
    global _ASKED

    def ask(*_: object) -> None:
        global _ASKED
        _ASKED = True

    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # what came meanwhile is raised here
        if not _ASKED:
            cell()
    except KeyboardInterrupt:
        _ASKED = True
    except SystemExit as stop:
        if stop.code != INTERRUPTED:
            raise
        _ASKED = True
    finally:
        signal.signal(signal.SIGINT, ask)
