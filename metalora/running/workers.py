"""Runs the jobs of `reproduce` in worker processes, one thread each: at small sizes that beats one with all threads.

Workers report progress through a queue; the parent draws the bars. A job is a module-level function and plain
arguments, so nothing but plain values crosses the border.
"""

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.managers import SyncManager
from typing import Any

from metalora.core.cores import cores
from metalora.core.errors import INTERRUPTED, TERMINATED, UserError
from metalora.core.memory import free_memory, keep_freed_memory
from metalora.core.notice import heard_by, notice
from metalora.running.progress import Board, Progress

_QUEUE: Any = None


@dataclass(frozen=True)
class Job:
    """One unit of work: `function(*arguments, progress=...)`, run when every job named in `needs` has ended.

    A higher `priority` goes first among those that are ready.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    needs: tuple[str, ...] = ()
    priority: int = 0


def worker_plan(*, workers: int | str, threads: int | str, device: str) -> tuple[int, int]:
    """Resolve `auto`: one worker per core on a CPU, one worker on anything else; threads share the cores."""
    if workers == "auto":
        workers = cores() if device == "cpu" else 1
    if threads == "auto":
        threads = max(1, cores() // int(workers))
    return int(workers), int(threads)


def _leave_with_parent() -> None:
    """End this process when its parent is gone without a word (SIGKILL, out of memory): a worker that goes on alone
    would hold its folder's lock and its memory, and the same command, started again, would wait for it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Processes started inside begin with Ctrl-C held back, so that none is caught by it while it still imports."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _ignore_ctrl_c() -> None:
    """A terminal sends Ctrl-C to every process; the parent tells its workers itself. A training still hears it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _start_manager() -> None:
    _ignore_ctrl_c()
    _leave_with_parent()


def _start_worker(channel: Any, threads: int) -> None:
    global _QUEUE
    _QUEUE = channel
    _ignore_ctrl_c()
    _leave_with_parent()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    keep_freed_memory()
    import torch

    torch.set_num_threads(threads)


def _run_in_worker(job: Job) -> Any:
    def report(stage: str, done: int, total: int) -> None:
        with contextlib.suppress(Exception):  # a lost progress message must not end a training
            _QUEUE.put_nowait((job.name, stage, done, total))

    def hear(text: str) -> None:
        with contextlib.suppress(Exception):
            _QUEUE.put_nowait((job.name, text, 0, 0))

    try:
        with heard_by(hear):
            return job.function(*job.arguments, progress=report)
    except SystemExit as stop:  # asked to end, and what was trained is saved: waiting for another job could be for ever
        if stop.code == TERMINATED:
            os._exit(TERMINATED)
        raise
    except KeyboardInterrupt:  # a training heard the terminal's Ctrl-C, and saved
        os._exit(INTERRUPTED)
    finally:
        free_memory()


@contextlib.contextmanager
def _drained(channel: Any, board: Board) -> Iterator[None]:
    stop = threading.Event()

    def drain() -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Empty, EOFError, OSError):
                name, stage, done, total = channel.get(timeout=0.2)
                if total:
                    board.update(name, stage, done, total)
                else:
                    board.say(f"{name}: {stage}")

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def _ending_together() -> Iterator[None]:
    """A SIGTERM or a Ctrl-C ends the workers too: each saves what it trains. A second Ctrl-C ends them now."""
    asked = False

    def end(number: int, frame: object) -> None:
        for child in multiprocessing.active_children():
            child.terminate()
        raise SystemExit(TERMINATED)

    def interrupt(number: int, frame: object) -> None:
        nonlocal asked
        again, asked = asked, True
        for child in multiprocessing.active_children():
            if again:
                child.kill()
            else:
                child.terminate()
        if not again:
            text = "the workers save what they train; Ctrl-C again stops now"
            threading.Thread(target=notice, args=(text,), daemon=True).start()
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def in_own_process(function: Callable[..., object], *arguments: Any) -> int | None:
    """Run a module-level function in a process that may die without this one; returns its exit status.

    Ctrl-C and SIGTERM reach it as they reach the workers of `run_jobs`.
    """
    process = multiprocessing.get_context("spawn").Process(target=_run_alone, args=(function, arguments))
    with _ending_together():
        with _deaf():
            process.start()
        try:
            process.join()
        finally:
            process.join()
    return process.exitcode


def _run_alone(function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    _ignore_ctrl_c()
    _leave_with_parent()
    function(*arguments)


def run_jobs(
    jobs: Sequence[Job],
    *,
    workers: int,
    threads: int,
    board: Board,
    finished: Callable[[str, Any], None],
) -> None:
    """Run jobs in dependency order; call `finished(name, result)` in the parent after each, one call at a time.

    With several workers the calls come from a thread of their own: a worker has its next job at once, however long
    the caller takes to look at the last one's result.

    The first exception of a job or of `finished` stops the handing out of new jobs and is raised here once the running
    ones have ended; everything they made stays, so the same command continues.
    """
    if workers <= 1:
        import torch

        torch.set_num_threads(threads)
        keep_freed_memory()
        _run_here(jobs, board=board, finished=finished)
        return
    context = multiprocessing.get_context("spawn")
    manager = SyncManager(ctx=context)
    with _deaf():
        manager.start(_start_manager)
    channel = manager.Queue()
    board.expect(len(jobs))
    waiting, running, done = list(jobs), {}, set()
    with (
        manager,
        _ending_together(),
        _drained(channel, board),
        ThreadPoolExecutor(1) as teller,
        ProcessPoolExecutor(
            workers, mp_context=context, initializer=_start_worker, initargs=(channel, threads)
        ) as pool,
    ):
        failure: BaseException | None = None
        told: list[Future[None]] = []
        while waiting or running:
            ready = [job for job in waiting if set(job.needs) <= done] if failure is None else []
            for job in sorted(ready, key=lambda item: -item.priority)[: workers - len(running)]:
                waiting.remove(job)
                with _deaf():
                    running[pool.submit(_run_in_worker, job)] = job
            if not running:
                break
            ended: set[Future[Any]] = wait(running, return_when=FIRST_COMPLETED).done
            for future in ended:
                job = running.pop(future)
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    error = UserError(
                        f"a worker was killed while it ran {job.name!r}",
                        expected="memory for this many workers; what is finished is kept, run the command again",
                        got=str(workers),
                        key="trainer.workers",
                    )
                if error is not None:
                    failure = failure or error
                    continue
                done.add(job.name)
                board.finish(job.name)
                told.append(teller.submit(finished, job.name, future.result()))
            failure = failure or next((call.exception() for call in told if call.done() and call.exception()), None)
        if failure is not None:
            raise failure
        for call in told:
            call.result()
    assert not waiting, f"jobs wait for jobs that do not exist: {[job.name for job in waiting]}"


def _run_here(jobs: Sequence[Job], *, board: Board, finished: Callable[[str, Any], None]) -> None:
    board.expect(len(jobs))
    waiting, done = list(jobs), set()
    while waiting:
        job = max((job for job in waiting if set(job.needs) <= done), key=lambda item: item.priority)
        waiting.remove(job)
        report: Progress = board.reporter(job.name)
        try:
            result = job.function(*job.arguments, progress=report)
        finally:
            free_memory()
        done.add(job.name)
        board.finish(job.name)
        finished(job.name, result)
