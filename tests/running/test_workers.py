"""Jobs run in the order of their needs, in this process or in several; a failure stops what is new, loses nothing."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metalora.core.errors import TERMINATED, UserError
from metalora.running.progress import Board, Progress
from metalora.running.workers import Job, run_jobs, worker_plan


def _note(folder: str, name: str, *, progress: Progress) -> int:
    progress("work", 1, 1)
    Path(folder, name).write_text(str(time.monotonic_ns()))
    return os.getpid()


def _fail(folder: str, name: str, *, progress: Progress) -> None:
    raise UserError("this job is broken", key=name)


def _jobs(folder: Path, broken: str = "") -> list[Job]:
    def job(name: str, *needs: str, priority: int = 0) -> Job:
        function: Callable[..., Any] = _fail if name == broken else _note
        return Job(name, function, (str(folder), name), needs=needs, priority=priority)

    return [job("score", "train"), job("train", "prepare"), job("prepare"), job("base", priority=5)]


@pytest.mark.parametrize("workers", [1, 2])
def test_needs_come_first(tmp_path: Path, workers: int) -> None:
    ended: dict[str, int] = {}
    with Board() as board:
        run_jobs(_jobs(tmp_path), workers=workers, threads=1, board=board, finished=ended.__setitem__)
    assert set(ended) == {"prepare", "train", "score", "base"}
    times = {name: int((tmp_path / name).read_text()) for name in ended}
    assert times["prepare"] < times["train"] < times["score"]
    assert (os.getpid() in ended.values()) == (workers == 1)
    if workers == 1:
        assert times["base"] == min(times.values())  # the highest priority that was ready


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_reaches_the_caller_and_dependents_do_not_run(tmp_path: Path, workers: int) -> None:
    ended: dict[str, Any] = {}
    with pytest.raises(UserError, match="this job is broken"), Board() as board:
        run_jobs(_jobs(tmp_path, "train"), workers=workers, threads=1, board=board, finished=ended.__setitem__)
    assert "prepare" in ended
    assert not (tmp_path / "score").exists()


def test_a_slow_caller_keeps_no_worker_waiting(tmp_path: Path) -> None:
    """The next job is at work while the caller still draws a report of the last one."""
    jobs = [Job(name, _note, (str(tmp_path), name), priority=-place) for place, name in enumerate(("a", "b", "c", "d"))]
    seen: list[tuple[str, bool]] = []

    def finished(name: str, result: int) -> None:
        deadline = time.monotonic() + 60
        while not (tmp_path / "d").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        seen.append((name, (tmp_path / "d").exists()))

    with Board() as board:
        run_jobs(jobs, workers=2, threads=1, board=board, finished=finished)
    assert sorted(seen) == [(name, True) for name in ("a", "b", "c", "d")]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_the_caller_raises_reaches_it(tmp_path: Path, workers: int) -> None:
    def finished(name: str, result: int) -> None:
        raise UserError("the disk is full", key="out")

    with pytest.raises(UserError, match="the disk is full"), Board() as board:
        run_jobs(_jobs(tmp_path), workers=workers, threads=1, board=board, finished=finished)


def _sleep(folder: str, name: str, *, progress: Progress) -> None:
    Path(folder, name).write_text(str(os.getpid()))
    time.sleep(300)


PARENT = """
import sys
sys.path.insert(0, {tests!r})
from test_workers import Board, Job, _note, _patient, _sleep, run_jobs

if __name__ == "__main__":
    jobs = [Job(name, function, ({folder!r}, name)) for name, function in (("one", {one}), ("two", {two}))]
    with Board() as board:
        run_jobs(jobs, workers=2, threads=1, board=board, finished=print)
"""


def _descendants(pid: int) -> set[int]:
    children = {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    return children.union(*(_descendants(child) for child in children))


CHILDREN = Path(f"/proc/self/task/{os.getpid()}/children")


@pytest.mark.skipif(not CHILDREN.is_file(), reason="this system does not tell a process's children")
def test_no_worker_outlives_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    places = {"tests": str(Path(__file__).parent), "folder": str(tmp_path)}
    script.write_text(PARENT.format(**places, one="_sleep", two="_sleep"))
    parent = subprocess.Popen([sys.executable, str(script)])
    try:
        wait_until(lambda: (tmp_path / "one").exists() and (tmp_path / "two").exists(), seconds=120)
        family = _descendants(parent.pid)
        assert {int((tmp_path / name).read_text()) for name in ("one", "two")} < family  # and the manager
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not any(_alive(pid) for pid in family), seconds=60)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def _die(*, progress: Progress) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_one_clear_line() -> None:
    with pytest.raises(UserError, match=r"killed while it ran 'dies'.*key: trainer\.workers"), Board() as board:
        run_jobs([Job("dies", _die, ())], workers=2, threads=1, board=board, finished=print)


def _patient(folder: str, name: str, *, progress: Progress) -> None:
    """Like a training: a SIGTERM is heard, the state is saved a moment later."""
    signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), Path(folder, "saved").touch(), sys.exit(TERMINATED)))
    _sleep(folder, name, progress=progress)


def test_a_sigterm_ends_a_run_that_has_an_idle_worker(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        PARENT.format(tests=str(Path(__file__).parent), folder=str(tmp_path), one="_patient", two="_note")
    )
    parent = subprocess.Popen([sys.executable, str(script)])
    try:
        wait_until(lambda: (tmp_path / "one").exists() and (tmp_path / "two").exists(), seconds=120)
        time.sleep(1)  # the worker of "two" waits for another job
        parent.terminate()
        assert parent.wait(timeout=60) == TERMINATED
    finally:
        parent.kill()
        parent.wait()
    assert (tmp_path / "saved").exists()


def test_worker_plan() -> None:
    assert worker_plan(workers="auto", threads="auto", device="cuda")[0] == 1
    cores = len(os.sched_getaffinity(0))
    assert worker_plan(workers="auto", threads="auto", device="cpu") == (cores, 1)
    assert worker_plan(workers=1, threads="auto", device="cpu") == (1, cores)
    assert worker_plan(workers=2, threads=3, device="cpu") == (2, 3)
