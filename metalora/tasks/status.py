"""`metalora status`: how the cells of sweeps stand."""

from collections import Counter
from pathlib import Path

from omegaconf import DictConfig

from metalora.core.errors import UserError
from metalora.tasks.cells import CELLS, Cell, Standing, cells_of

STATES = ("done", "running", "failed", "missing")


def run(cfg: DictConfig) -> None:
    """The task behind the command line; exit status 1 when cells have failed."""
    outputs = Path(str(cfg.paths.outputs))
    folders = [outputs / str(cfg.name)] if cfg.name else sorted(path.parent for path in outputs.glob(f"*/{CELLS}"))
    found = {folder: [(cell, cell.standing()) for cell in cells_of(folder)] for folder in folders}
    found = {folder: cells for folder, cells in found.items() if cells}
    if not found:
        raise UserError(
            "there is no sweep", expected="one made by `metalora TASK -m ...`", got=str(outputs), key="name"
        )
    for folder, cells in found.items():
        print("\n".join(lines_of(folder.name, cells, everything=cfg.all)))
    if any(standing.state == "failed" for cells in found.values() for _, standing in cells):
        raise SystemExit(1)


def lines_of(name: str, cells: list[tuple[Cell, Standing]], *, everything: bool = False) -> list[str]:
    """What is told about one sweep: a line of counts, then one for each cell that is not done."""
    counts = Counter(standing.state for _, standing in cells)
    lines = [f"{name}: {len(cells)} cells, " + ", ".join(f"{counts[state]} {state}" for state in STATES)]
    for cell, standing in cells:
        if everything or standing.state != "done":
            lines.append(f"  {standing.state:<8} {cell.task} {cell.label}" + f": {standing.text}" * bool(standing.text))
    return lines
