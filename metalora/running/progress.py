"""Progress for people: one live view in a terminal; plain lines, now and then, in a log file and in CI."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, TextIO

from metalora.core.notice import heard_by
from metalora.running.pace import Pace, spoken

Progress = Callable[[str, int, int], None]
"""Called as progress(stage, done, total)."""
EVERY_SECONDS = 30.0
"""Plain output: a job's next line comes after this long, or with the next stage or the end of one."""
AT_LEAST_SECONDS = 2.0
"""Plain output: stages that change faster than this are not all told."""

_CELL = ""


@contextlib.contextmanager
def in_cell(label: str) -> Iterator[None]:
    """Inside, lines of a cell of a sweep begin with its label where other cells may print beside it."""
    global _CELL
    before, _CELL = _CELL, f"{label}: " if label and _is_one_of_many() else ""
    try:
        yield
    finally:
        _CELL = before


class Board(AbstractContextManager["Board"]):
    """One row per running job: its stage (phase, bucket, people), a bar, steps a second, time left. Below them how many
    jobs are done and the last scores. Jobs appear when they first report and leave when they finish.

    Args:
        stream: where to write; stderr by default. It is live if it is a terminal that can move its cursor, outside CI.
    """

    def __init__(self, *, stream: TextIO | None = None) -> None:
        from rich.console import Console

        self._stream = sys.stderr if stream is None else stream
        self.live = _can_draw(self._stream)
        self._jobs: dict[str, Pace] = {}
        self._told: dict[str, tuple[str, float]] = {}
        self._of, self._scores = 0, ""
        self._ended: set[str] = set()
        self._lock = threading.RLock()
        self._hearing = contextlib.ExitStack()
        self._console = Console(file=self._stream, force_terminal=True) if self.live else None
        self._view: Any = None

    def __enter__(self) -> "Board":
        self._hearing.enter_context(heard_by(self.say))
        if self._console is not None:
            from rich.live import Live

            self._view = Live(get_renderable=self._drawn, console=self._console, refresh_per_second=4, transient=True)
            self._view.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hearing.close()
        if self._view is not None:
            self._view.stop()
            self._view = None

    def say(self, text: str) -> None:
        """Print one line above the rows."""
        if self._view is not None and self._console is not None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(_CELL + text, file=self._stream, flush=True)

    def expect(self, jobs: int) -> None:
        """How many jobs there will be from now on."""
        self._of = jobs
        self._ended.clear()

    def scores(self, text: str) -> None:
        """What was scored last."""
        self._scores = text
        if not self.live:
            self.say(text)

    def update(self, job: str, stage: str, done: int, total: int) -> None:
        """Move a job on."""
        with self._lock:
            if job in self._ended:  # word of it was still on its way
                return
            pace = self._jobs.setdefault(job, Pace(clock=time.monotonic))
            pace.move(stage, done, total)
            if not self.live:
                self._tell(job, pace)

    def _tell(self, job: str, pace: Pace) -> None:
        stage, when = self._told.get(job, ("", -EVERY_SECONDS))
        now, ended = time.monotonic(), pace.done >= pace.total
        wait = EVERY_SECONDS if stage == pace.stage and not ended else AT_LEAST_SECONDS
        if ended and stage == f"{pace.kind} ended":
            return
        if ended or now - when >= wait:
            self._told[job] = (f"{pace.kind} ended" if ended else pace.stage, now)
            self.say(f"{job}: {pace}")

    def finish(self, job: str) -> None:
        """Remove a job's row."""
        with self._lock:
            self._jobs.pop(job, None)
            self._told.pop(job, None)
            self._ended.add(job)

    def reporter(self, job: str) -> Progress:
        """A progress callback bound to one job."""
        return lambda stage, done, total: self.update(job, stage, done, total)

    def _drawn(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        rows = Table.grid(padding=(0, 1))
        for ratio in (None, 1, None, None, None, None):
            rows.add_column(no_wrap=True, overflow="ellipsis", ratio=ratio)
        rows.expand = True
        width = 20 if self._console is not None and self._console.width >= 110 else 6
        with self._lock:
            for job, pace in self._jobs.items():
                bar = ProgressBar(total=max(pace.total, 1), completed=pace.done, width=width)
                left = "" if pace.seconds_left is None else f"{spoken(pace.seconds_left)} left"
                rows.add_row(job, pace.stage, bar, f"{pace.done}/{pace.total}", pace.speed, left)
            below = [f"{len(self._ended)} of {self._of} jobs done" if self._of else "", self._scores]
        footer = "   ".join(part for part in below if part)
        return Group(rows, Text(footer, style="dim", no_wrap=True, overflow="ellipsis")) if footer else rows


def _is_one_of_many() -> bool:
    """Whether this process runs one cell of a sweep whose other cells may run at the same time."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return False
    return not str(HydraConfig.get().launcher["_target_"]).endswith(".BasicLauncher")


def _can_draw(stream: TextIO) -> bool:
    """A terminal that can move its cursor, with somebody before it, and no other job that draws on it."""
    if _is_one_of_many():
        return False
    quiet = os.environ.get("TERM") in ("dumb", "unknown") or os.environ.get("CI", "").lower() not in ("", "0", "false")
    return stream.isatty() and not quiet
