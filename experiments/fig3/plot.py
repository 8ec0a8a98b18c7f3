"""Figure 3: women. Trade-off over ranks and iterations with fits, and rank 1 over iterations, with the rivals.

python -m experiments.fig3.plot [FOLDER ...] [out=DIR]
"""

import sys
from pathlib import Path

from experiments.shown import Claim, Shown, interval, points, show, told, verdict
from metalora.evaluation.curves import CellKey, compare
from metalora.evaluation.frontier import frontier_gap
from metalora.reporting import look
from metalora.reporting.overview import draw_overview
from metalora.reporting.study import METHODS, Study, paper_reference
from metalora.reporting.tables import NONE, Table


def make(study: Study, out: Path, *, class_noun: str = "woman", name: str = "fig3") -> Shown:
    """The figure, its numbers at rank 1, and its two claims."""
    picture = draw_overview(study, class_noun=class_noun, folder=out, name=name)
    claims = (_frontier(study, class_noun=class_noun), _speed(study, class_noun=class_noun))
    return Shown((_numbers(study, class_noun=class_noun),), (picture,) if picture else (), claims)


def _numbers(study: Study, *, class_noun: str) -> Table:
    """Rank 1 and the rivals, beside what the paper prints: Table 4's points, means of both classes."""
    theirs = {row.get("method", row["label"]): row for row in paper_reference()["table_4"]["rows"]}
    points_of = dict(paper_reference()["operating_points"])
    rows = []
    curves = [cell for m in METHODS for cell in study.curve(m, rank=study.target.rank, class_noun=class_noun)]
    rivals = [cell for key in study.rivals if (cell := study.cell(key, class_noun=class_noun))]
    for cell in [*curves, *rivals]:
        key, paper = cell.key, None
        if points_of.get(key.method) == key.iterations:
            paper = theirs.get(key.method)
        rows.append(
            (
                look.label(key.method),
                str(key.iterations or NONE),
                points(cell.scores["r_face_sim"].mean),
                points(cell.scores["clip_t"].mean),
                f"{paper['r_face_sim']:.2f}" if paper else NONE,
                f"{paper['clip_t']:.2f}" if paper else NONE,
            )
        )
    header = ("method", "iterations", "R-FaceSim", "CLIP-T", "the paper's", "the paper's CLIP-T")
    who = f"{look.CLASSES[class_noun]}, rank {study.target.rank}"
    title = f"{who}: {study.world}; the paper's from its Table 4, both classes"
    return Table(title, header, tuple(rows))


def _frontier(study: Study, *, class_noun: str) -> Claim:
    claim = "Meta-LoRA's fit lies above LoRA+aug's over all ranks and iterations"
    gap = frontier_gap(study.scores, method="meta_lora", other="lora_aug", class_noun=class_noun)
    if gap is None:
        return Claim(claim, None, "too few cells, or no CLIP-T that both reach (`make sweep`)")
    where = (
        f"between CLIP-T {points(gap.clip_t[0])} and {points(gap.clip_t[1])}, {gap.cells[0]} and {gap.cells[1]} cells"
    )
    holds = True if gap.low > 0 else False if gap.high < 0 else None
    return Claim(claim, holds, f"by {interval(gap.mean, gap.low, gap.high)} points of R-FaceSim {where}")


def _speed(study: Study, *, class_noun: str) -> Claim:
    reference = paper_reference()["operating_points"]
    ours, other = (CellKey(m, 1, reference["meta_lora"]) for m in ("meta_lora", "lora_aug"))
    claim = f"at rank 1 Meta-LoRA learns the face sooner, so at {ours.iterations} iterations its R-FaceSim is higher"
    if study.cell(ours, class_noun=class_noun) is None or study.cell(other, class_noun=class_noun) is None:
        return Claim(claim, None, "not run")
    found = compare(study.scores, ours, other, metric="r_face_sim", class_noun=class_noun)
    return Claim(claim, verdict(found), f"by {told(found)} than LoRA+aug's, {found.identities} people")


if __name__ == "__main__":
    show("fig3", make, sys.argv[1:])
