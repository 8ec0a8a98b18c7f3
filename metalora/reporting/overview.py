"""One class in one figure: trade-off on the left, scores over iterations on the right, rivals in both (Fig. 3, 5)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from metalora.evaluation.curves import Cell
from metalora.reporting import iterations, look, tradeoff
from metalora.reporting.study import METHODS, Study

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_SCALE = 0.5
"""Of the report's marker areas: these panels are smaller."""


def draw_overview(
    study: Study, *, class_noun: str, folder: Path, name: str, vector: str = "pdf"
) -> look.Picture | None:
    """Four panels: every cell with a fit per method, the same closer up, R-FaceSim and CLIP-T over iterations.

    Rivals, which have no rank, are marks on the left and levels on the right. None while no cell of the class has
    both scores.
    """
    from matplotlib.figure import Figure

    cells = tradeoff.points(study, class_noun)
    if not cells:
        return None
    close = [cell for cell in cells if cell.key.method != tradeoff.WHOLE]
    with look.style():
        figure = Figure(figsize=(7.6, 6.6))
        (whole, faces), (near, prompts) = figure.subplots(2, 2)
        for ax, shown in ((whole, cells), (near, close)):
            tradeoff.panel(ax, study, shown, scale=_SCALE)
            tradeoff.rivals(ax, study, class_noun=class_noun)
            ax.set_ylabel("R-FaceSim (%)")
            ax.set_xlabel("CLIP-T (%)")
        _close_up(near, close)
        tradeoff.context(whole, study, cells, class_noun=class_noun)
        whole.set_title("All ranks and iterations")
        near.set_title("Closer up, without LoRA")
        for ax, metric in ((faces, "r_face_sim"), (prompts, "clip_t")):
            for method in METHODS:
                curve = study.curve(method, rank=study.target.rank, class_noun=class_noun)
                iterations.band(ax, curve, metric, method=method)
            iterations.rival_lines(ax, study, metric, class_noun=class_noun)
            ax.set_ylabel(iterations.SCORES[metric])
            ax.set_xlabel("iterations")
            ax.set_xticks(study.iterations)
        faces.set_title(f"Rank {study.target.rank}, 95% over people")
        figure.suptitle(f"{look.CLASSES.get(class_noun, class_noun).capitalize()}: {study.world}", x=0.01, ha="left")
        _legend(figure, study)
        figure.tight_layout(rect=(0, 0.1, 1, 1))
        return look.save(figure, folder, name, vector=vector, dpi=220)


def _close_up(ax: "Axes", cells: list[Cell]) -> None:
    """As near as the cells allow: a rival far below them stands in the panel above alone."""
    values = [100 * cell.scores["r_face_sim"].mean for cell in cells]
    if values:
        spare = 0.1 * max(max(values) - min(values), 5.0)
        ax.set_ylim(min(values) - spare, max(values) + spare)


def _legend(figure: "Figure", study: Study) -> None:
    """Methods with their colours, rivals with mark and line, ranks with their markers."""
    from matplotlib.lines import Line2D

    present = [method for method in METHODS if any(cell.key.method == method for cell in study.cells)]
    handles: list[Artist] = [
        Line2D([], [], color=look.colour(method), linewidth=2.2, label=look.label(method)) for method in present
    ]
    for place, key in enumerate(study.rivals):
        mark = {"marker": look.rival_mark(place), "markersize": 8, "linestyle": look.rival_line(place)}
        handles.append(
            Line2D([], [], color=look.colour(key.method), label=look.label(key.method), linewidth=1.3, **mark)
        )
    grey: dict[str, Any] = {"linestyle": "", "markeredgewidth": 0}
    ranks: list[Artist] = [
        Line2D([], [], marker=look.marker(r), color="#666666", markersize=6, label=f"rank {r}", **grey)
        for r in study.ranks
    ]
    among = study.iterations
    for n in dict.fromkeys((among[0], among[-1])):
        size = (_SCALE * look.marker_size(n, among=among)) ** 0.5
        ranks.append(Line2D([], [], marker="o", color="#bbbbbb", markersize=size, label=f"{n} iterations", **grey))
    ring = {"marker": "o", "markersize": 9, "markerfacecolor": "none", "linestyle": ""}
    ranks.append(Line2D([], [], color=look.INK, label="the points of Table 4", **ring))
    shared: dict[str, Any] = {"loc": "lower left", "columnspacing": 1.2}
    figure.legend(handles=handles, ncols=len(handles), bbox_to_anchor=(0.01, 0.045), handlelength=2.6, **shared)
    figure.legend(handles=ranks, ncols=len(ranks), bbox_to_anchor=(0.01, 0.0), handlelength=1.0, **shared)
