"""FaceSim against R-FaceSim: how much of a score was the copied pose (Table 3), beside the paper's own numbers."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from metalora.core.metrics import relative_drop
from metalora.evaluation.curves import CellKey
from metalora.reporting import look
from metalora.reporting.study import Study, paper_reference

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class _Bars:
    label: str
    colour: str
    face_sim: float
    r_face_sim: float
    difference: float
    intervals: tuple[tuple[float, float], tuple[float, float]] | None


def draw_facesim(study: Study, *, folder: Path, name: str = "facesim", vector: str = "svg") -> look.Picture | None:
    """Paired bars with relative drops: measured here on the left, the paper's Table 3 on the right."""
    from matplotlib.figure import Figure

    ours = _ours(study)
    if not ours:
        return None
    theirs = _papers()
    with look.style():
        figure = Figure(figsize=(11.2, 3.9))
        left, right = figure.subplots(1, 2, width_ratios=(max(len(ours), 2), len(theirs)))
        _draw(left, ours)
        _draw(right, theirs)
        left.set_ylabel("cosine (%)")
        left.set_title("Measured here")
        right.set_title("The paper's Table 3: FLUX.1-dev and SD-XL, real people", color="#666666")
        figure.suptitle(f"FaceSim (light) against R-FaceSim (solid): {study.world}", x=0.01, ha="left", fontsize=11)
        figure.tight_layout()
        return look.save(figure, folder, name, vector=vector, dpi=220 if vector == "pdf" else 160)


def _ours(study: Study) -> list[_Bars]:
    bars = []
    for key in (*study.rivals, *study.operating_points):
        cell = study.cell(key)
        if cell is None or not np.isfinite([cell.scores["face_sim"].mean, cell.scores["r_face_sim"].mean]).all():
            continue
        face, robust = cell.scores["face_sim"], cell.scores["r_face_sim"]
        bars.append(
            _Bars(
                label="\n".join([_narrow(look.label(key.method)), *_where(key)]),
                colour=look.colour(key.method),
                face_sim=100 * face.mean,
                r_face_sim=100 * robust.mean,
                difference=100 * relative_drop(face.mean, robust.mean),
                intervals=((100 * face.low, 100 * face.high), (100 * robust.low, 100 * robust.high)),
            )
        )
    return bars


def _narrow(label: str) -> str:
    return label.replace("+", "\n+").replace("-like", "-\nlike").replace(" ", "\n")


def _where(key: CellKey) -> list[str]:
    return ([f"rank {key.rank}"] if key.rank else []) + ([f"{key.iterations} it."] if key.iterations else [])


def _papers() -> list[_Bars]:
    return [
        _Bars(
            label=row["label"]
            .replace(" (", "\n(")
            .replace("SD-XL Lightning", "SD-XL\nLightning")
            .replace(" rank-1", "\nrank-1"),
            colour=look.colour(row["method"]),
            face_sim=row["face_sim"],
            r_face_sim=row["r_face_sim"],
            difference=row["difference"],
            intervals=None,
        )
        for row in paper_reference()["table_3"]["rows"]
    ]


def _draw(ax: "Axes", bars: list[_Bars]) -> None:
    width = 0.38
    for place, bar in enumerate(bars):
        heights = (bar.face_sim, bar.r_face_sim)
        for offset, height, alpha, number in zip((-width / 2, width / 2), heights, (0.4, 1.0), (0, 1), strict=True):
            ax.bar(place + offset, height, width * 0.94, color=bar.colour, alpha=alpha, linewidth=0)
            if bar.intervals is not None:
                low, high = bar.intervals[number]
                ax.plot([place + offset] * 2, [low, high], color=look.INK, linewidth=1)
        tops = [*heights, *(high for _, high in bar.intervals or ())]
        ax.annotate(
            f"{bar.difference:+.1f}%",
            (place, max(*tops, 0)),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            fontweight="bold",
        )
    ax.set_xticks(range(len(bars)), [bar.label for bar in bars], fontsize=7)
    ax.tick_params(axis="x", length=0)
    ax.grid(axis="x", visible=False)
    ax.margins(x=0.02, y=0.12)
