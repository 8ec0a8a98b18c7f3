"""A sweep: its cells written down, those that are not done launched, and what became of each told at the end.

Whether a launcher works in this process, in others or on a cluster, cells tell how they ended through their folders,
so nothing depends on what a launcher returns, or on whether it returns at all.
"""

import contextlib
import sys
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from metalora.core.errors import UserError
from metalora.core.lease import tell
from metalora.running.artifact import LEASE, leased
from metalora.running.cells import Cell
from metalora.running.inputs import stamp_of
from metalora.running.progress import in_cell

Words = list[str]
Launch = Callable[[list[Words], int], Any]
"""Called with the overrides of some cells and the number of the first; returns when they have ended."""

Entry = tuple[Words, Cell]

SOME_CELLS_ARE_NOT_DONE, BAD_INPUT = 1, 2


class Sweep:
    """The cells of one command.

    Args:
        batches: overrides of each cell; one batch is launched at once.
        composed: a cell's configuration. Raises what Hydra raises at a bad one, before anything is launched.
        swept: keys that differ between cells; they name the cells.
    """

    def __init__(
        self, batches: Sequence[Sequence[Words]], *, composed: Callable[[Words], DictConfig], swept: Collection[str]
    ) -> None:
        self._batches: list[list[Entry]] = []
        self._has_begun = False
        order = 0
        for batch in batches:
            self._batches.append([])
            for words in batch:
                label = " ".join(word for word in words if word.partition("=")[0] in swept) or "one cell"
                self._batches[-1].append((words, Cell.of(composed(words), label=label, order=order)))
                order += 1

    def run(self, launch: Launch, *, attempts: int) -> None:
        """Launch what is not done, and again what was lost with its worker.

        Args:
            attempts: launches of a cell whose worker was lost each time.

        Raises:
            SystemExit: when a cell is not done at the end; with status 2 if bad input is all that stands in the way, as
                for a single job, or if the launcher begins no cell at all, else with status 1.
        """
        cells = [cell for batch in self._batches for _, cell in batch]
        stamp = cache(stamp_of)  # cells share what they read
        for cell in cells:
            if not cell.is_kept(stamp=stamp):
                cell.write()
        first = 0
        for batch in self._batches:
            self._launch(batch, lambda words, first=first: launch(words, first), attempts=attempts)
            first += len(batch)
        self._tell(cells)

    def _launch(self, batch: Sequence[Entry], launch: Callable[[list[Words]], Any], *, attempts: int) -> None:
        """One batch until none of it is left: who was never begun goes first, who was lost comes after everybody else,
        and for the last time alone, so that a cell that takes its worker and the others' with it harms nobody."""
        lost = [0] * len(batch)
        while True:
            todo = [place for place, (_, cell) in enumerate(batch) if _is_left(cell) and lost[place] < attempts]
            if not todo:
                return
            least = min(lost[place] for place in todo)
            group = [place for place in todo if lost[place] == least]
            if least:
                group = group[:1] if least == attempts - 1 else group
                _say(f"{len(group)} {'cell was' if len(group) == 1 else 'cells were'} lost with the worker: once more")
                time.sleep(least)
            turns = {place: batch[place][1].turns() for place in group}
            error = _error_of(lambda group=group: launch([batch[place][0] for place in group]))
            for place in group:
                while batch[place][1].standing().state == "running":  # a launcher that gave up leaves others at work
                    time.sleep(0.5)
            begun = [place for place in group if batch[place][1].turns() > turns[place]]
            if error is not None and not begun and not self._has_begun:
                told = f"{type(error).__name__}: {_last_line(error)}"
                _say(str(UserError("the launcher has begun no cell", got=told, key="hydra.launcher")))
                raise SystemExit(BAD_INPUT)
            self._has_begun = True
            if error is not None:
                _say(f"the launcher lost a worker: {type(error).__name__}: {_last_line(error)}")
            for place in begun or group:
                lost[place] += 1

    def _tell(self, cells: Sequence[Cell]) -> None:
        standings = [(cell, cell.standing()) for cell in cells]
        done = sum(standing.state == "done" for _, standing in standings)
        _say(f"{done} of {len(cells)} cells are done")
        for cell, standing in standings:
            if standing.state != "done":
                _say(f"{standing.state}: {cell.label}{': ' if standing.text else ''}{standing.text}")
        if done < len(cells):
            mendable = all(standing.mendable for _, standing in standings if standing.state != "done")
            raise SystemExit(BAD_INPUT if mendable else SOME_CELLS_ARE_NOT_DONE)


def run_cell(cfg: DictConfig, body: Callable[[], Any], *, reason_of: Callable[[Exception], str | None]) -> None:
    """One cell, in the process that a launcher gave it: not twice at a time, not again when it is done.

    Args:
        body: the task; what it returns are the files that make the cell done.
        reason_of: one line for an exception that a person can mend, None for others (their traceback is printed too).
    """
    cell = Cell.of(cfg)
    label = next((known.label for known in _known(cell) if known.label), cell.folder.name)
    with leased(cell.folder / LEASE, _waiting, what=label, served=cell.is_done) as owned:
        if owned is None or cell.is_done():
            return
        begun = time.monotonic()
        tell("begun")
        try:
            read = cell.stamps()
            with in_cell(label):
                made = body()
        except Exception as error:
            if getattr(cfg, "debug", False):
                raise
            reason = reason_of(error)
            mendable = reason is not None
            if reason is None:
                traceback.print_exc()
                reason = f"{type(error).__name__}: {_first_line(error)}"
            cell.failed(reason, mendable=mendable, seconds=_since(begun))
            _say(f"failed: {label}: {reason}")
            return
        files = made if isinstance(made, list) else [made] if isinstance(made, Path) else []
        cell.done(files, read=read, seconds=_since(begun))


def _known(cell: Cell) -> list[Cell]:
    from metalora.running.cells import cells_of

    return [found for found in cells_of(cell.folder.parent.parent) if found.folder == cell.folder]


def _waiting(stage: str, number: int, total: int) -> None:
    _say(stage)


def _since(begun: float) -> float:
    return time.monotonic() - begun


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def _last_line(error: BaseException) -> str:
    """Where launchers say the cause."""
    return (str(error).strip().splitlines() or [""])[-1].strip()[:200]


def _is_left(cell: Cell) -> bool:
    return cell.standing().state in ("missing", "running")


def _error_of(body: Callable[[], Any]) -> Exception | None:
    try:
        body()
    except Exception as error:
        return error
    return None


def _say(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(f"metalora: {text}", file=sys.stderr, flush=True)
