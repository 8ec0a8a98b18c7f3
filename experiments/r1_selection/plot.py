"""Appendix K: R-FaceSim and CLIP-T over Stage 2, by r1 and by the length of Stage 1.

    python -m experiments.r1_selection.plot [OUTPUTS] [out=DIR]

OUTPUTS: where `run` left r1_selection-R1-STEPS; default METALORA_OUTPUTS, or outputs.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from experiments.r1_selection.run import NAME
from experiments.shown import Claim, Shown, by_person, outputs, paired, points, present, study_of, told, verdict
from metalora.core import metrics
from metalora.core.errors import UserError
from metalora.evaluation.curves import Cell, person_means, rows_of
from metalora.reporting import look
from metalora.reporting.iterations import SCORES
from metalora.reporting.look import Picture
from metalora.reporting.study import Study
from metalora.reporting.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EARLY = 375
"""Stage 2 is early up to here."""
BUDGET = 0.03
"""How far CLIP-T may lie below the base's, as where learning rates are chosen."""
Studies = Mapping[tuple[int, int], Study]


class Place(NamedTuple):
    """Where a cell lies."""

    r1: int
    stage_1: int
    stage_2: int

    def __str__(self) -> str:
        return f"r1 {self.r1}, Stage 1 {self.stage_1}, Stage 2 {self.stage_2}"


def studies_in(outputs: Path) -> Studies:
    """Studies by (r1, Stage-1 iterations)."""
    found = {}
    for folder in sorted(outputs.glob(f"{NAME}-*-*")):
        if match := re.fullmatch(rf"{NAME}-(\d+)-(\d+)", folder.name):
            study = study_of([folder])
            if _curve(study):  # not one that has scored its base alone yet
                found[int(match[1]), int(match[2])] = study
    if not found:
        raise UserError(
            "no Stage 2 of any prior", expected=f"{NAME}-R1-STEPS/evaluate/*", got=str(outputs), key="OUTPUTS"
        )
    return found


def make(studies: Studies, out: Path) -> Shown:
    """The figure, a table of all cells, and two claims."""
    return Shown((_table(studies),), (_draw(studies, out),), (_early(studies), _best(studies)))


def _curve(study: Study) -> list[Cell]:
    return study.curve("meta_lora", rank=1, class_noun=study.overall)


def _table(studies: Studies) -> Table:
    iterations = sorted({cell.key.iterations for study in studies.values() for cell in _curve(study)})
    rows = []
    for (rank, steps), study in studies.items():
        cells = {cell.key.iterations: cell.scores for cell in _curve(study)}
        texts = [
            f"{points(cells[n]['r_face_sim'].mean)} / {points(cells[n]['clip_t'].mean)}" if n in cells else ""
            for n in iterations
        ]
        rows.append((str(rank), str(steps), *texts))
    world = next(iter(studies.values())).world
    header = ("r1", "Stage 1", *(f"{n} it." for n in iterations))
    return Table(f"R-FaceSim / CLIP-T over Stage 2, women: {world} (the paper prints no numbers)", header, tuple(rows))


def _draw(studies: Studies, out: Path) -> Picture:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    ranks, lengths = (sorted({key[n] for key in studies}) for n in (0, 1))
    shade = dict(zip(lengths, colormaps["cividis"](np.linspace(0.85, 0.0, len(lengths))), strict=True))
    with look.style():
        figure = Figure(figsize=(2.4 * len(ranks) + 0.6, 4.6))
        axes = figure.subplots(2, len(ranks), squeeze=False, sharex=True, sharey="row")
        for column, rank in enumerate(ranks):
            for row, metric in enumerate(SCORES):
                ax: Axes = axes[row][column]
                for place, steps in enumerate(lengths):
                    if study := studies.get((rank, steps)):
                        curve = _curve(study)
                        x = [cell.key.iterations for cell in curve]
                        y = [100 * cell.scores[metric].mean for cell in curve]
                        mark = {"marker": look.rival_mark(place), "markersize": 5, "linewidth": 1.4}
                        ax.plot(x, y, color=shade[steps], label=f"{steps}", **mark)
                if column == 0:
                    ax.set_ylabel(SCORES[metric])
            axes[0][column].set_title(f"r1 = {rank}")
            axes[1][column].set_xlabel("Stage-2 iterations")
        shown = [dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True)) for ax in axes[0]]
        labels = [f"{steps}" for steps in lengths]
        handles = [next(ax[label] for ax in shown if label in ax) for label in labels]  # a column may lack a length
        figure.legend(handles, labels, title="Stage-1 iterations", ncols=len(lengths), loc="lower left")
        figure.suptitle(f"Women, r2 = 1: {next(iter(studies.values())).world}", x=0.01, ha="left")
        figure.tight_layout(rect=(0, 0.11, 1, 1))
        return look.save(figure, out, NAME, vector="pdf", dpi=220)


def _early(studies: Studies) -> Claim:
    """CLIP-T of the widest against the narrowest, over the early checkpoints and all lengths of Stage 1."""
    claim = "a larger r1 overfits sooner: lower CLIP-T early in Stage 2"
    ranks = sorted({rank for rank, _ in studies})
    low, high = ranks[0], ranks[-1]
    shared = [steps for rank, steps in studies if rank == low and (high, steps) in studies]
    if low == high or not shared:
        return Claim(claim, None, "there is one r1 only")
    gaps = []
    for steps in shared:
        means = [_early_means(studies[rank, steps]) for rank in (high, low)]
        gaps.append(means[0] - means[1])
    lost = -np.mean(gaps, axis=0)
    found = metrics.paired_bootstrap(lost, np.zeros_like(lost))
    text = f"r1 {high} loses {told(found)} of CLIP-T up to {EARLY} iterations against r1 {low}"
    return Claim(claim, verdict(found), f"{text}, {found.identities} people")


def _early_means(study: Study) -> np.ndarray:
    """CLIP-T of each person, the mean of the early checkpoints."""
    keys = [cell.key for cell in _curve(study) if cell.key.iterations <= EARLY]
    tables = [rows_of(study.scores, key, class_noun=study.overall) for key in keys]
    people = sorted(set(tables[0].loc[tables[0]["clip_t"].notna(), "identity"]))
    scored = [rows[rows["identity"].isin(people)] for rows in tables]
    return np.mean([person_means(rows, "clip_t", among=people) for rows in scored], axis=0)


def _best(studies: Studies) -> Claim:
    """The paper's cell against every other in R-FaceSim, of those whose CLIP-T is within the budget."""
    claim = "the best balance is at the middle r1, five sixths of the longest Stage 1, and 375 iterations of Stage 2"
    ranks, lengths = (sorted({key[n] for key in studies}) for n in (0, 1))
    papers = Place(ranks[len(ranks) // 2], lengths[-1] * 5 // 6, 375)
    cells = {
        Place(rank, steps, cell.key.iterations): (study, cell)
        for (rank, steps), study in studies.items()
        for cell in _curve(study)
    }
    if len(ranks) < 3 or papers not in cells:
        return Claim(claim, None, "that cell has not been run, or its r1 is not between two others")
    faces = {
        place: by_person(rows_of(study.scores, cell.key, class_noun=study.overall), "r_face_sim")
        for place, (study, cell) in cells.items()
        if _keeps_clip_t(study, cell)
    }
    if papers not in faces:
        return Claim(claim, False, f"{papers} does not keep CLIP-T within {points(BUDGET)} points of the base's")
    own = faces.pop(papers)
    if not faces:
        return Claim(claim, None, f"only {papers} keeps CLIP-T within {points(BUDGET)} points of the base's")
    gaps = {place: paired(own, other) for place, other in faces.items()}
    hardest = min(gaps, key=lambda place: gaps[place].mean)
    gap, highest = gaps[hardest], points(faces[hardest].mean())
    holds = verdict(gap)
    if holds and not all(verdict(other) for other in gaps.values()):
        holds = None
    text = f"R-FaceSim of {papers} is {points(own.mean())}, {told(gap)} from {highest} of {hardest}, the nearest or"
    text += f" highest of {len(gaps)} other cells within {points(BUDGET)} points of the base's CLIP-T"
    return Claim(claim, holds, f"{text}, {gap.identities} people")


def _keeps_clip_t(study: Study, cell: Cell) -> bool:
    base = study.base()
    return base is not None and base.scores["clip_t"].mean - cell.scores["clip_t"].mean <= BUDGET


if __name__ == "__main__":
    words = sys.argv[1:]
    where = next((Path(word) for word in words if "=" not in word), outputs())
    target = next(
        (Path(word.removeprefix("out=")) for word in words if word.startswith("out=")), outputs() / "paper" / NAME
    )
    try:
        present(NAME, make(studies_in(where), target), out=target)
    except UserError as error:
        raise SystemExit(f"{NAME}: {error}") from None
