"""Figure 6: R-FaceSim and CLIP-T over iterations at ranks 1, 4 and 16, women and men.

python -m experiments.fig6.plot [FOLDER ...] [out=DIR]
"""

import sys
from pathlib import Path

from experiments.shown import Claim, Shown, points, show, told, verdict
from metalora.evaluation.curves import CellKey, compare
from metalora.reporting import look
from metalora.reporting.iterations import RANKS, draw_ranks
from metalora.reporting.study import METHODS, Study
from metalora.reporting.tables import NONE, Table


def make(study: Study, out: Path) -> Shown:
    """The figure, every number in it, and a claim per method."""
    picture = draw_ranks(study, folder=out, name="fig6", vector="pdf", class_nouns=("woman", "man"))
    claims = tuple(claim for method in ("lora_aug", "meta_lora") for claim in _claims(study, method))
    return Shown((_numbers(study),), (picture,) if picture else (), claims)


def _numbers(study: Study) -> Table:
    rows = []
    for noun in ("woman", "man"):
        for method in METHODS:
            for rank in RANKS:
                cells = {cell.key.iterations: cell for cell in study.curve(method, rank=rank, class_noun=noun)}
                texts = [
                    f"{points(c.scores['r_face_sim'].mean)} / {points(c.scores['clip_t'].mean)}" if c else NONE
                    for c in (cells.get(n) for n in study.iterations)
                ]
                rows.append((look.CLASSES[noun], look.label(method), str(rank), *texts))
    header = ("people", "method", "rank", *(str(n) for n in study.iterations))
    title = f"R-FaceSim / CLIP-T over iterations: {study.world} (the paper draws its numbers and prints none)"
    return Table(title, header, tuple(rows))


def _claims(study: Study, method: str) -> list[Claim]:
    """Over all people at 375 iterations, or at the last checkpoint that both ranks have where one lacks these."""
    low, high = RANKS[0], RANKS[-1]
    shared = [n for n in study.iterations if all(study.cell(CellKey(method, r, n)) for r in (low, high))]
    if not shared:
        missing = f"ranks {low} and {high} have not both been run (`make sweep`)"
        return [Claim(f"a higher rank raises R-FaceSim of {look.label(method)} and lowers its CLIP-T", None, missing)]
    n = 375 if 375 in shared else shared[-1]
    keys = (CellKey(method, high, n), CellKey(method, low, n))
    face, clip = (compare(study.scores, *keys, metric=m, class_noun=study.overall) for m in ("r_face_sim", "clip_t"))
    where = f"rank {high} minus rank {low} at {n} iterations, {face.identities} and {clip.identities} people"
    fall = verdict(clip)
    return [
        Claim(f"a higher rank raises R-FaceSim of {look.label(method)}", verdict(face), f"{told(face)}, {where}"),
        Claim(
            f"a higher rank lowers CLIP-T of {look.label(method)}",
            None if fall is None else not fall,
            f"{told(clip)}, {where}",
        ),
    ]


if __name__ == "__main__":
    show("fig6", make, sys.argv[1:])
