"""Table 3: FaceSim against R-FaceSim, and how much of the first is lost in the second.

python -m experiments.table3.plot [FOLDER ...] [out=DIR]
"""

import sys
from pathlib import Path

from experiments.shown import Claim, Shown, interval, paired, points, show, told, verdict
from metalora.core import metrics
from metalora.core.metrics import relative_drop
from metalora.evaluation.curves import Cell, CellKey, rows_of
from metalora.evaluation.drop import drop_of_people
from metalora.reporting import look
from metalora.reporting.facesim import draw_facesim
from metalora.reporting.study import Study, paper_reference
from metalora.reporting.tables import NONE, Table

TUNING_FREE = (
    "ip_adapter",
    "pulid",
    "instantid_sdxl",
    "instantid_lightning",
    "photomaker_sdxl",
    "photomaker_lightning",
)
"""Methods that train for nobody."""


def make(study: Study, out: Path) -> Shown:
    """The table, its bars, and the claim about tuning-free methods."""
    picture = draw_facesim(study, folder=out, name="table3", vector="pdf")
    return Shown((_table(study),), (picture,) if picture else (), tuple(_claims(study)))


def keys_of(study: Study) -> list[CellKey]:
    """Rivals and the LoRA methods' operating points, those that have been run."""
    return [key for key in (*study.rivals, *study.operating_points) if study.cell(key)]


def _table(study: Study) -> Table:
    theirs = list(paper_reference()["table_3"]["rows"])
    by_method = {row["method"]: row for row in theirs}
    rows = []
    for key in keys_of(study):
        cell, paper = study.cell(key), by_method.pop(key.method, None)
        assert cell is not None
        drop = metrics.bootstrap(_drops(study, key))
        rows.append(
            (
                look.label(key.method),
                ", ".join(str(n) for n in (key.rank, key.iterations) if n) or NONE,
                points(cell.scores["face_sim"].mean),
                points(cell.scores["r_face_sim"].mean),
                points(_drop_of_means(cell), sign=True),
                interval(drop.mean, drop.low, drop.high),
                *_paper(paper),
            )
        )
    rows += [(row["label"], *(NONE,) * 5, *_paper(row)) for row in by_method.values()]
    header = ("method", "rank, iterations", "FaceSim", "R-FaceSim", "drop %", "of found faces, by person")
    header += ("paper: FaceSim", "R-FaceSim", "drop %")
    return Table(f"Table 3: {study.world}, beside the paper's FLUX.1-dev and SD-XL", header, tuple(rows))


def _paper(row: dict[str, float] | None) -> tuple[str, str, str]:
    return (f"{row['face_sim']:.2f}", f"{row['r_face_sim']:.2f}", f"{row['difference']:+.1f}") if row else (NONE,) * 3


def _drop_of_means(cell: Cell) -> float:
    """As the paper's: of the means over all images, a face that was not found counting 0."""
    return relative_drop(cell.scores["face_sim"].mean, cell.scores["r_face_sim"].mean)


def _drops(study: Study, key: CellKey):
    rows = rows_of(study.scores, key, class_noun=study.overall)
    return drop_of_people(rows[rows["face_found"] == 1]).to_numpy(dtype=float)


def _claims(study: Study) -> list[Claim]:
    claim = "R-FaceSim takes more from what a tuning-free method scores in FaceSim than from what Meta-LoRA does"
    meta = next(key for key in study.operating_points if key.method == "meta_lora")
    free = [key for key in keys_of(study) if key.method in TUNING_FREE]
    if study.cell(meta) is None or not free:
        return [Claim(claim, None, "no tuning-free method has been run (`make rivals`)")]
    found = []
    for key in free:
        tables = [rows_of(study.scores, k, class_noun=study.overall) for k in (meta, key)]
        ours, theirs = (drop_of_people(rows[rows["face_found"] == 1]) for rows in tables)
        gap = paired(ours, theirs)
        text = f"{look.label(key.method)} loses {points(-theirs.mean())}%, Meta-LoRA {points(-ours.mean())}%"
        text += f", {told(gap)} apart, {gap.identities} people"
        found.append(Claim(claim, verdict(gap), text))
    return found


if __name__ == "__main__":
    show("table3", make, sys.argv[1:])
