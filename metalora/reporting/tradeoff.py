"""The trade-off figure: R-FaceSim over CLIP-T for all ranks and iterations (Fig. 3 left, Fig. 5 left)."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from metalora.core.metrics import trend
from metalora.evaluation.curves import Cell
from metalora.reporting import look
from metalora.reporting.study import METHODS, Study

WHOLE = "lora"
"""The method that trains on the whole photo."""

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_tradeoff(study: Study, *, folder: Path) -> look.Picture | None:
    """One panel per class: every cell, a polynomial per method, the untouched base, ceilings and floor.

    Below it the same closer up, without LoRA on the whole photo, whose CLIP-T may fall so far that the others become
    one spot. None while no cell has both scores.
    """
    from matplotlib.figure import Figure

    panels = [c for c in ("woman", "man", "both") if c in study.classes] or list(study.classes)
    found = {class_noun: points(study, class_noun) for class_noun in panels}
    if not any(found.values()):
        return None
    close = {class_noun: [c for c in found[class_noun] if c.key.method != WHOLE] for class_noun in panels}
    rows = 2 if any(close.values()) and close != found else 1
    with look.style():
        figure = Figure(figsize=(3.9 * len(panels) + 0.4, 0.9 + 3.4 * rows))
        axes = figure.subplots(rows, len(panels), squeeze=False, sharey="row")
        for column, class_noun in enumerate(panels):
            panel(axes[0][column], study, found[class_noun])
            context(axes[0][column], study, found[class_noun], class_noun=class_noun)
            axes[0][column].set_title(look.CLASSES.get(class_noun, class_noun))
            if rows == 2:
                panel(axes[1][column], study, close[class_noun])
                axes[1][column].set_title("closer up, without LoRA on the whole photo", fontsize=9, weight="normal")
            axes[-1][column].set_xlabel("CLIP-T (%)")
        for row in axes:
            row[0].set_ylabel("R-FaceSim (%)")
        _legend(figure, study)
        figure.suptitle(f"Identity against prompt following: {study.world}", x=0.01, ha="left", fontsize=11)
        figure.tight_layout(rect=(0, 0.43 / (0.9 + 3.4 * rows), 1, 1))
        return look.save(figure, folder, "tradeoff")


def points(study: Study, class_noun: str) -> list[Cell]:
    """The LoRA methods' cells of a class that have both scores."""
    found = [c for c in study.cells if c.class_noun == class_noun and c.key.method in METHODS]
    return [c for c in found if np.isfinite([c.scores["clip_t"].mean, c.scores["r_face_sim"].mean]).all()]


def panel(ax: "Axes", study: Study, cells: list[Cell], *, scale: float = 1.0) -> None:
    """Cells as markers by rank and iteration, with a polynomial per method; `scale` is of the markers' area."""
    for method in METHODS:
        of_method = [cell for cell in cells if cell.key.method == method]
        if not of_method:
            continue
        colour = look.colour(method)
        for rank in study.ranks:
            curve = sorted((c for c in of_method if c.key.rank == rank), key=lambda c: c.key.iterations)
            x, y = _xy(curve)
            ax.plot(x, y, color=colour, linewidth=0.7, alpha=0.35, zorder=2)
            sizes = [scale * look.marker_size(c.key.iterations, among=study.iterations) for c in curve]
            ax.scatter(
                x,
                y,
                s=sizes,
                marker=look.marker(rank),
                color=colour,
                alpha=0.85,
                edgecolor="white",
                linewidth=0.6,
                zorder=4,
            )
        _fit(ax, of_method, colour=colour)
        if len(study.ranks) == 1:
            _intervals(ax, of_method, colour=colour)
    _operating_points(ax, study, cells, scale=scale)


def rivals(ax: "Axes", study: Study, *, class_noun: str) -> None:
    """Methods that are no LoRA of ours: one mark each."""
    for place, key in enumerate(study.rivals):
        cell = study.cell(key, class_noun=class_noun)
        if cell is not None and np.isfinite([cell.scores["clip_t"].mean, cell.scores["r_face_sim"].mean]).all():
            x, y = _xy([cell])
            ax.scatter(
                x,
                y,
                s=95,
                marker=look.rival_mark(place),
                color=look.colour(key.method),
                edgecolor="white",
                linewidth=0.6,
                zorder=6,
            )


def _xy(cells: list[Cell]) -> tuple[np.ndarray, np.ndarray]:
    x, y = ([cell.scores[metric].mean for cell in cells] for metric in ("clip_t", "r_face_sim"))
    return 100 * np.array(x), 100 * np.array(y)


def _fit(ax: "Axes", cells: list[Cell], *, colour: str) -> None:
    x, y = _xy(cells)
    if len(cells) >= 3:
        line = np.linspace(x.min(), x.max(), 100)
        ax.plot(line, trend(x, y)(line), color=colour, linewidth=2.2, alpha=0.9, zorder=3, solid_capstyle="round")


def _intervals(ax: "Axes", cells: list[Cell], *, colour: str) -> None:
    for cell in cells:
        clip, face = cell.scores["clip_t"], cell.scores["r_face_sim"]
        bars = {"color": colour, "alpha": 0.25, "linewidth": 0.9, "zorder": 1}
        ax.plot([100 * clip.mean] * 2, [100 * face.low, 100 * face.high], **bars)
        ax.plot([100 * clip.low, 100 * clip.high], [100 * face.mean] * 2, **bars)


def _operating_points(ax: "Axes", study: Study, cells: list[Cell], *, scale: float) -> None:
    """Ring the cells that the paper's tables compare."""
    for key in study.operating_points:
        for cell in cells:
            if cell.key == key:
                x, y = _xy([cell])
                ax.scatter(x, y, s=170 * scale, facecolor="none", edgecolor=look.INK, linewidth=1.0, zorder=5)


def context(ax: "Axes", study: Study, cells: list[Cell], *, class_noun: str) -> None:
    """The untouched base, ceilings and floor, and limits that hold all of them."""
    x, y = _xy(cells)
    base, bounds = study.base(class_noun=class_noun), study.bounds.get(class_noun)
    lows, highs = [*y], [*y]
    if base is not None and np.isfinite(base.scores["clip_t"].mean):
        at = 100 * base.scores["clip_t"].mean
        x = np.append(x, at)
        ax.axvline(at, color=look.FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        face = 100 * base.scores["r_face_sim"].mean
        if np.isfinite(face):
            ax.scatter([at], [face], marker="x", s=45, color=look.INK, linewidth=1.5, zorder=4)
            ax.annotate("base", (at, face), xytext=(-6, 5), textcoords="offset points", fontsize=7, ha="right")
            lows.append(face)
    if bounds is not None:
        for level, text, above in (
            (bounds.reference.mean, "real reference photo", True),
            (bounds.stranger.mean, "strangers", False),
        ):
            if np.isfinite(level):
                ax.axhline(100 * level, color=look.FAINT, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
                ax.annotate(
                    f"{text} {100 * level:.1f}",
                    (0.01, 100 * level),
                    xycoords=("axes fraction", "data"),
                    xytext=(0, 3),
                    textcoords="offset points",
                    fontsize=7,
                    color="#666666",
                )
                (highs if above else lows).append(100 * level)
    if x.size:
        margin = max(0.06 * (x.max() - x.min()), 0.3)
        ax.set_xlim(x.min() - margin, x.max() + margin)
    if lows and highs:
        span = max(max(highs) - min(lows), 1.0)
        ax.set_ylim(min(lows) - 0.07 * span, max(highs) + 0.07 * span)


def _legend(figure: "Figure", study: Study) -> None:
    from matplotlib.lines import Line2D

    def dot(text: str, *, colour: str, shape: str = "o", area: float = 45) -> Line2D:
        return Line2D(
            [], [], linestyle="", marker=shape, color=colour, markersize=area**0.5, label=text, markeredgewidth=0
        )

    present = [method for method in METHODS if any(cell.key.method == method for cell in study.cells)]
    handles = [
        Line2D(
            [], [], color=look.colour(m), linewidth=2.2, marker="o", markersize=5, label=f"{look.label(m)} (line: fit)"
        )
        for m in present
    ]
    if len(study.iterations) > 1:
        handles += [
            dot(f"{n} iterations", colour="#bbbbbb", area=look.marker_size(n, among=study.iterations))
            for n in (study.iterations[0], study.iterations[-1])
        ]
    ring = Line2D([], [], linestyle="", marker="o", markersize=10, markerfacecolor="none", color=look.INK)
    named = [f"{look.label(key.method)} {key.iterations}" for key in study.operating_points]
    ring.set_label(f"what the paper's tables compare: {', '.join(named)} iterations")
    place = {"loc": "lower left", "columnspacing": 1.4}
    height = figure.get_figheight()
    figure.legend(handles=[*handles, ring], ncols=len(handles) + 1, bbox_to_anchor=(0.01, 0.22 / height), **place)
    if len(study.ranks) > 1:
        ranks = [dot(f"rank {rank}", colour="#666666", shape=look.marker(rank)) for rank in study.ranks]
        figure.legend(handles=ranks, ncols=len(ranks), bbox_to_anchor=(0.01, 0.0), **place)
