"""What an evaluation tells: metrics.csv with a row per cell, the same as a table, and curves over iterations."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metalora.core.atomic import write_bytes
from metalora.core.manifest import read_manifest
from metalora.core.metric_names import CLIP_T, ITERATION, R_FACE_SIM, SCORES, TABLE
from metalora.evaluation.curves import BOTH, Cell, cells
from metalora.evaluation.score_table import BASE
from metalora.tracking.tracker import Thing, Tracker, digest_of

if TYPE_CHECKING:
    import pandas as pd

FILE = "metrics.csv"
COLUMNS = ("method", "rank", ITERATION, "class", "people", "images", *(metric.name for metric in SCORES))


def tell_cells(tracker: Tracker, scores: "pd.DataFrame", *, folder: Path | None = None) -> None:
    """The trade-off as a table (of every class alone and of all), and curves where one method at one rank is told of.

    Args:
        scores: as `evaluation.score_table.read_scores` returns it.
        folder: where metrics.csv goes.
    """
    if folder is None and not tracker.listens:
        return
    found = cells(scores)
    rows = [_row(cell) for cell in found]
    if folder is not None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
        write_bytes(folder / FILE, text.getvalue().encode())
    tracker.table(TABLE, COLUMNS, rows)
    trained = [cell for cell in found if cell.key.method != BASE]
    if len({(cell.key.method, cell.key.rank) for cell in trained}) == 1:
        classes = {cell.class_noun for cell in trained}
        everybody = BOTH if BOTH in classes else min(classes)
        for cell in sorted(trained, key=lambda one: one.key.iterations):
            if cell.class_noun == everybody:
                tracker.scalars(_scores(cell), step=cell.key.iterations)


def tell_lineage(tracker: Tracker, images: Sequence[Path], *, digest: str) -> None:
    """From which LoRA files which scores came.

    A personalization's files of an iteration are one artifact. Men and women, or the shards of many people, are several
    personalizations, each known by its folder, where a file lies as FOLDER/IDENTITY/lora-ITERATIONS.

    Args:
        images: the folders that were scored.
        digest: of the scores.
    """
    if not tracker.listens:
        return
    files: dict[tuple[Path, int], set[str]] = {}
    for record in (record for folder in images for record in read_manifest(folder)):
        if record.lora_sha256:
            run = Path(record.lora).parent.parent
            files.setdefault((run, record.iterations), set()).add(record.lora_sha256)
    for (_, iterations), hashes in files.items():
        tracker.used(Thing("lora", digest_of(hashes), (("iterations", iterations),)))
    tracker.made(Thing("scores", digest))


def last_scores(scores: Path, *, of: str) -> str:
    """One line for people about a finished evaluation: its last row, times 100 as in the tables.

    Args:
        scores: the table; metrics.csv lies beside it.
        of: what was scored.
    """
    path = scores.parent / FILE
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.is_file() else []
    if not rows:
        return ""
    last = rows[-1]
    shown = {"R-FaceSim": R_FACE_SIM.name, "CLIP-T": CLIP_T.name}
    numbers = [f"{label} {100 * float(last[name]):.1f}" for label, name in shown.items() if last[name]]
    return f"last scores: {of.removeprefix('score ')}, {last[ITERATION]} iterations: {', '.join(numbers) or 'none'}"


def _row(cell: Cell) -> tuple[Any, ...]:
    key, told = cell.key, _scores(cell)
    numbers = (told.get(metric.name) for metric in SCORES)
    return (key.method, key.rank, key.iterations, cell.class_noun, cell.people, cell.images, *numbers)


def _scores(cell: Cell) -> dict[str, float]:
    """What was measured; a score of nobody is left out."""
    means = {metric.name: cell.scores[metric.name.removeprefix("eval/")].mean for metric in SCORES}
    return {name: round(float(mean), 6) for name, mean in means.items() if math.isfinite(mean)}
