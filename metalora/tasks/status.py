"""`metalora status`: how the cells of sweeps stand."""

import sys
import time
from collections import Counter
from pathlib import Path

from omegaconf import DictConfig

from metalora.core.errors import UserError
from metalora.running.cells import CELLS, Cell, Standing, cells_of

STATES = ("done", "running", "failed", "missing")


def run(cfg: DictConfig) -> None:
    """The task behind the command line; exit status 1 when cells have failed."""
    outputs, watch = Path(str(cfg.paths.outputs)), cfg.watch
    if watch is not None and (not isinstance(watch, int | float) or isinstance(watch, bool) or not 0 < watch < 1e6):
        raise UserError("cannot tell so often", expected="seconds, or null for once", got=str(watch), key="watch")
    while True:
        states = _tell(outputs, cfg.name, everything=cfg.all, afresh=watch is not None and sys.stdout.isatty())
        if watch is None or states <= {"done", "failed"}:
            break
        time.sleep(watch)
    if "failed" in states:
        raise SystemExit(1)


def _tell(outputs: Path, name: str | None, *, everything: bool, afresh: bool) -> set[str]:
    """Print how the sweeps stand; returns the states of their cells."""
    folders = [outputs / str(name)] if name else sorted(path.parent for path in outputs.glob(f"*/{CELLS}"))
    found = {folder: [(cell, cell.standing()) for cell in cells_of(folder)] for folder in folders}
    found = {folder: cells for folder, cells in found.items() if cells}
    if not found:
        raise UserError(
            "there is no sweep", expected="one made by `metalora TASK -m ...`", got=str(outputs), key="name"
        )
    lines = [line for folder, cells in found.items() for line in lines_of(folder.name, cells, everything=everything)]
    print(("\x1b[H\x1b[2J" if afresh else "") + "\n".join(lines), flush=True)
    return {standing.state for cells in found.values() for _, standing in cells}


def lines_of(name: str, cells: list[tuple[Cell, Standing]], *, everything: bool = False) -> list[str]:
    """What is told about one sweep: a line of counts, then one for each cell that is not done."""
    counts = Counter(standing.state for _, standing in cells)
    lines = [f"{name}: {len(cells)} cells, " + ", ".join(f"{counts[state]} {state}" for state in STATES)]
    for cell, standing in cells:
        if everything or standing.state != "done":
            lines.append(f"  {standing.state:<8} {cell.task} {cell.label}" + f": {standing.text}" * bool(standing.text))
    return lines
