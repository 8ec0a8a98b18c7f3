"""Scores over iterations: rank 1 with steps to match (Fig. 3 right, Fig. 5 right) and several ranks (Fig. 6)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from metalora.evaluation.curves import Cell
from metalora.reporting import look
from metalora.reporting.study import METHODS, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RANKS = (1, 4, 16)
"""The ranks of the paper's Fig. 6."""
SCORES = {"r_face_sim": "R-FaceSim (%)", "clip_t": "CLIP-T (%)"}
_LINES = {1: "-", 4: (0, (5, 1.5)), 16: (0, (1.2, 1.2))}


def draw_iterations(study: Study, *, folder: Path) -> look.Picture | None:
    """Both scores over iterations at the target's rank, with 95% bands and, over all people, the steps to match."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    rank = study.target.rank
    panels = _panels(study)
    if not any(study.curve(method, rank=rank, class_noun=panels[0]) for method in METHODS):
        return None
    with look.style():
        figure = Figure(figsize=(3.7 * len(panels) + 0.4, 5.6))
        axes = figure.subplots(2, len(panels), squeeze=False, sharex=True, sharey="row")
        for column, class_noun in enumerate(panels):
            for row, metric in enumerate(SCORES):
                ax = axes[row][column]
                for method in METHODS:
                    band(ax, study.curve(method, rank=rank, class_noun=class_noun), metric, method=method)
                _levels(ax, study, metric, class_noun=class_noun)
                if column == 0:
                    ax.set_ylabel(SCORES[metric])
            axes[0][column].set_title(look.CLASSES.get(class_noun, class_noun))
            axes[0][column].margins(y=0.14)
            axes[1][column].set_xlabel("iterations")
            axes[1][column].set_xticks(study.iterations)
            _matches(axes[0][column], axes[1][column], study, class_noun=class_noun)
        present = [m for m in METHODS if study.curve(m, rank=rank, class_noun=panels[0])]
        handles = [
            Line2D([], [], color=look.colour(m), linewidth=1.9, marker="o", label=look.label(m)) for m in present
        ]
        axes[0][0].legend(handles=handles, loc="lower right", handlelength=1.6)
        figure.suptitle(f"Scores over iterations, rank {rank}: {study.world}", x=0.01, ha="left", fontsize=11)
        figure.tight_layout()
        return look.save(figure, folder, "iterations")


def draw_ranks(
    study: Study, *, folder: Path, name: str = "ranks", vector: str = "svg", class_nouns: Sequence[str] = ()
) -> look.Picture | None:
    """Both scores over iterations for ranks 1, 4 and 16 (Fig. 6); None while there is one rank only.

    Args:
        class_nouns: the panels; all there are when empty.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    ranks = [rank for rank in RANKS if rank in study.ranks]
    if len(ranks) < 2:
        return None
    panels = [noun for noun in class_nouns if noun in study.classes] or _panels(study)
    with look.style():
        figure = Figure(figsize=(3.7 * len(panels) + 0.4, 6.0))
        axes = figure.subplots(2, len(panels), squeeze=False, sharex=True, sharey="row")
        for column, class_noun in enumerate(panels):
            for row, metric in enumerate(SCORES):
                ax = axes[row][column]
                for method in METHODS:
                    for rank in ranks:
                        curve = _known(study.curve(method, rank=rank, class_noun=class_noun), metric)
                        x, y = [c.key.iterations for c in curve], [100 * c.scores[metric].mean for c in curve]
                        ax.plot(
                            x,
                            y,
                            color=look.colour(method),
                            linestyle=_LINES[rank],
                            linewidth=1.6,
                            marker=look.marker(rank),
                            markersize=4.5,
                        )
                if column == 0:
                    ax.set_ylabel(SCORES[metric])
            axes[0][column].set_title(look.CLASSES.get(class_noun, class_noun))
            axes[1][column].set_xlabel("iterations")
            axes[1][column].set_xticks(study.iterations)
        present = [method for method in METHODS if any(cell.key.method == method for cell in study.cells)]
        handles = [Line2D([], [], color=look.colour(m), linewidth=2.2, label=look.label(m)) for m in present]
        handles += [
            Line2D(
                [], [], color="#555555", linestyle=_LINES[r], marker=look.marker(r), markersize=4.5, label=f"rank {r}"
            )
            for r in ranks
        ]
        figure.legend(handles=handles, loc="lower left", ncols=len(handles), bbox_to_anchor=(0.01, 0.0), handlelength=3)
        figure.suptitle(f"Scores over iterations by rank: {study.world}", x=0.01, ha="left", fontsize=11)
        figure.tight_layout(rect=(0, 0.05, 1, 1))
        return look.save(figure, folder, name, vector=vector, dpi=220 if vector == "pdf" else 160)


def _panels(study: Study) -> list[str]:
    return [noun for noun in ("both", "woman", "man") if noun in study.classes] or list(study.classes)


def _known(cells: list[Cell], metric: str) -> list[Cell]:
    return [cell for cell in cells if np.isfinite(cell.scores[metric].mean)]


def band(ax: "Axes", curve: list[Cell], metric: str, *, method: str) -> None:
    """A method's score over iterations with its 95% band over people."""
    curve = _known(curve, metric)
    if not curve:
        return
    x = [cell.key.iterations for cell in curve]
    mean, low, high = ([100 * getattr(cell.scores[metric], name) for cell in curve] for name in ("mean", "low", "high"))
    ax.fill_between(x, low, high, color=look.colour(method), alpha=0.13, linewidth=0)
    ax.plot(x, mean, color=look.colour(method), linewidth=1.9, marker="o", markersize=4.5, label=look.label(method))


def rival_lines(ax: "Axes", study: Study, metric: str, *, class_noun: str) -> None:
    """Methods that are no LoRA of ours: a level each, as in the paper."""
    for place, key in enumerate(study.rivals):
        cell = study.cell(key, class_noun=class_noun)
        if cell is not None and np.isfinite(cell.scores[metric].mean):
            level, line = 100 * cell.scores[metric].mean, look.rival_line(place)
            ax.axhline(level, color=look.colour(key.method), linewidth=1.3, linestyle=line, zorder=1)


def _levels(ax: "Axes", study: Study, metric: str, *, class_noun: str) -> None:
    """The untouched base's CLIP-T, which every method starts from."""
    base = study.base(class_noun=class_noun)
    if metric == "clip_t" and base is not None and np.isfinite(base.scores["clip_t"].mean):
        level = 100 * base.scores["clip_t"].mean
        ax.axhline(level, color=look.FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        ax.annotate(
            f"untouched base {level:.1f}",
            (0.99, level),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            fontsize=7,
            color="#666666",
        )
        ax.margins(y=0.12)


def _matches(top: "Axes", bottom: "Axes", study: Study, *, class_noun: str) -> None:
    """The target's level and where the method first has it."""
    match = study.match(class_noun=class_noun)
    if match is None:
        return
    target, colour = study.target, look.colour(study.method)
    for ax, level in ((top, match.target_r_face_sim), (bottom, match.target_clip_t)):
        ax.axhline(100 * level, color=look.colour(target.method), linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
        ax.axvline(target.iterations, color=look.colour(target.method), linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
    n = match.matched if match.matched is not None else match.plain
    if n is None:
        _say(top, f"{look.label(study.method)} does not\nget there by {study.iterations[-1]}", colour=colour)
        return
    for ax in (top, bottom):
        ax.axvline(n, color=colour, linewidth=1.1, linestyle=(0, (2, 2)), zorder=1)
    level = 100 * match.target_r_face_sim
    top.scatter([n], [level], s=55, facecolor="white", edgecolor=colour, linewidth=1.6, zorder=6)
    if n < target.iterations:
        arrow = {"arrowstyle": "<->", "color": look.INK, "linewidth": 0.9, "shrinkA": 5, "shrinkB": 0}
        top.annotate("", (target.iterations, level), (n, level), arrowprops=arrow)
    early = n <= match.first_checkpoint
    ratio = target.iterations / n
    text = f"{'at most ' if early else ''}{n:.0f} iterations,\n{'at least ' if early else ''}{ratio:.2f} times fewer"
    if ratio <= 1:
        text = f"{n:.0f} iterations:\nnot fewer ({ratio:.2f} times)"
    _say(top, text + ("" if match.matched is not None else ",\nat lower CLIP-T"), colour=colour)


def _say(ax: "Axes", text: str, *, colour: str) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}
    at = {"xy": (0.03, 0.97), "xycoords": "axes fraction", "va": "top"}
    ax.annotate(text, **at, fontsize=8, color=colour, fontweight="bold", bbox=box, zorder=7)
