"""Table 4: CLIP-T, CLIP-I and R-FaceSim of all methods.

python -m experiments.table4.plot [FOLDER ...] [out=DIR]
"""

import sys
from pathlib import Path

from experiments.shown import Claim, Shown, show, told, verdict
from experiments.table3.plot import keys_of
from metalora.evaluation.curves import BASE, CellKey
from metalora.reporting import look
from metalora.reporting.study import Study, paper_reference
from metalora.reporting.tables import NONE, Table, with_interval

SCORES = ("clip_t", "clip_i", "r_face_sim")


def make(study: Study, out: Path) -> Shown:
    """The table and its claim: the highest R-FaceSim at a CLIP-T that is not lower."""
    return Shown((_table(study),), (), tuple(_claims(study)))


def _table(study: Study) -> Table:
    theirs = list(paper_reference()["table_4"]["rows"])
    by_method = {row["method"]: row for row in theirs}
    rows = []
    for key in (CellKey(BASE, 0, 0), *keys_of(study)):
        cell = study.cell(key)
        if cell is None:
            continue
        scores = [
            NONE if (key.method, name) == (BASE, "clip_i") else with_interval(cell.scores[name]) for name in SCORES
        ]
        where = ", ".join(str(n) for n in (key.rank, key.iterations) if n) or NONE
        rows.append((look.label(key.method), where, *scores, *_paper(by_method.pop(key.method, None))))
    rows += [(row["label"], *(NONE,) * 4, *_paper(row)) for row in by_method.values()]
    header = ("method", "rank, iterations", "CLIP-T", "CLIP-I", "R-FaceSim", "paper: CLIP-T", "CLIP-I", "R-FaceSim")
    return Table(
        f"Table 4: {study.world}, 95% over people; beside the paper's FLUX.1-dev and SD-XL", header, tuple(rows)
    )


def _paper(row: dict[str, float] | None) -> tuple[str, ...]:
    return tuple(f"{row[name]:.2f}" for name in SCORES) if row else (NONE,) * 3


def _claims(study: Study) -> list[Claim]:
    meta = next(key for key in study.operating_points if key.method == "meta_lora")
    if study.cell(meta) is None:
        return [Claim("Meta-LoRA has the highest R-FaceSim of all methods", None, "Meta-LoRA has not been run")]
    others = [key for key in keys_of(study) if key.method != "meta_lora"]
    claim = "Meta-LoRA has the highest R-FaceSim of all methods"
    found = {key: study.compare(meta, key, metric="r_face_sim") for key in others}
    known = {key: gap for key, gap in found.items() if gap is not None and gap.identities}
    if not known:
        return [Claim(claim, None, "nothing else has been run")]
    hardest = min(known, key=lambda key: known[key].mean)
    gap = known[hardest]
    text = f"{told(gap)} from {_name(hardest)}, the nearest or highest of {len(known)}"
    claims = [Claim(claim, verdict(gap), text)]
    foreign = {row["method"] for row in paper_reference()["table_4"]["rows"] if "SD-XL" in row["label"]}
    clip = {key: study.compare(meta, key, metric="clip_t") for key in others if key.method not in foreign}
    best = [(key, gap) for key, gap in clip.items() if gap is not None and gap.identities]
    if best:
        key, gap = min(best, key=lambda pair: pair[1].mean)
        claim = "among FLUX.1-dev's methods, Meta-LoRA has the highest CLIP-T"
        claims.append(Claim(claim, verdict(gap), f"{told(gap)} from {_name(key)}"))
    return claims


def _name(key: CellKey) -> str:
    return f"{look.label(key.method)} at {key.iterations}" if key.iterations else look.label(key.method)


if __name__ == "__main__":
    show("table4", make, sys.argv[1:])
