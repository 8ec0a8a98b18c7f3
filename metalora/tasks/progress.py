"""Progress for people: live bars in a terminal, a line per tenth in a log file."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType

Progress = Callable[[str, int, int], None]
"""Called as progress(stage, done, total)."""


class Board(AbstractContextManager["Board"]):
    """One bar per running job. Jobs appear when they first report and leave when they finish."""

    def __init__(self, *, stream: object = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self.live = sys.stderr.isatty() if stream is None else False
        self._tenths: dict[tuple[str, str], int] = {}
        self._bars: dict[str, int] = {}
        self._rich = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not self.live,
        )

    def __enter__(self) -> "Board":
        self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rich.stop()

    def say(self, text: str) -> None:
        """Print one line above the bars."""
        if self.live:
            self._rich.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def update(self, job: str, stage: str, done: int, total: int) -> None:
        """Move a job's bar; a new stage starts a new bar."""
        if self.live:
            label = f"{job}: {stage}"
            if job not in self._bars:
                self._bars[job] = self._rich.add_task(label, total=total)
            self._rich.update(self._bars[job], description=label, completed=done, total=total)  # type: ignore[arg-type]
            return
        tenth = 10 * done // max(total, 1)
        if tenth > self._tenths.get((job, stage), -1):
            self._tenths[job, stage] = tenth
            self.say(f"{job}: {stage} {done}/{total}")

    def finish(self, job: str) -> None:
        """Remove a job's bar."""
        bar = self._bars.pop(job, None)
        if bar is not None:
            self._rich.remove_task(bar)  # type: ignore[arg-type]

    def reporter(self, job: str) -> Progress:
        """A progress callback bound to one job."""
        return lambda stage, done, total: self.update(job, stage, done, total)
