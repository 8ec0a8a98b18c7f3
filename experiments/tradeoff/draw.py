"""The study's pictures: frontiers with bands, curves over iterations, ranks, Stage-1 lengths and people."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.tradeoff.evidence import curve, from_base
from experiments.tradeoff.measures import cell_interval
from metalora.evaluation.curves import BOTH, CellKey, rows_of
from metalora.evaluation.frontier import frontier
from metalora.reporting import look
from metalora.reporting.look import Picture

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

NAMES = {"r_face_sim": "R-FaceSim (%)", "clip_t": "CLIP-T (%)"}
WORLD = "the mini world; bars: 95% over people"


def against(settings: "Mapping[str, pd.DataFrame]", methods: Sequence[str], out: Path, name: str) -> Picture:
    """For each setting a row: the frontiers with their bands, and both scores over iterations.

    Each resample of people has a frontier from its own base to its own last cell; the band is over these at equal
    shares of the way, so it does not hold how uncertain CLIP-T is, which the title says.
    """
    from matplotlib.figure import Figure

    with look.style():
        figure = Figure(figsize=(10.2, 0.9 + 3.1 * len(settings)))
        axes = figure.subplots(len(settings), 3, squeeze=False)
        for row, (title, scores) in zip(axes, settings.items(), strict=True):
            for place, method in enumerate(methods):
                _frontier(row[0], scores, method)
                for ax, metric in zip(row[1:], NAMES, strict=True):
                    _over(ax, [(c.iterations, scores, c) for c in curve(scores, method)], metric, method, place=place)
            row[0].set_xlabel(NAMES["clip_t"])
            row[0].set_ylabel(NAMES["r_face_sim"])
            row[0].set_title(title)
            for ax, metric in zip(row[1:], NAMES, strict=True):
                ax.set_xlabel("iterations")
                ax.set_ylabel(NAMES[metric])
        handles, labels = axes[0][1].get_legend_handles_labels()
        figure.legend(handles, labels, ncols=len(methods), loc="lower left", bbox_to_anchor=(0.01, 0.0))
        title = f"Best R-FaceSim at no lower CLIP-T, from the untouched base: {WORLD}, bands: of R-FaceSim"
        figure.suptitle(title, x=0.01, ha="left")
        figure.tight_layout(rect=(0, 0.35 / figure.get_figheight(), 1, 1))
        return look.save(figure, out, name, vector="pdf", dpi=150)


def over_ranks(scores: "pd.DataFrame", seed: "pd.DataFrame", out: Path, name: str, *, iterations: int) -> Picture:
    """Both scores over the rank: ranks 1 and 16 over all seeds, and dashed one seed, which rank 4 has, too."""

    def fill(ax: "Axes", metric: str) -> None:
        for place, method in enumerate(("lora_aug", "meta_lora")):
            for table, ranks in ((scores, (1, 16)), (seed, (1, 4, 16))):
                keys = [CellKey(method, rank, iterations) for rank in ranks]
                there = [key for key in keys if not rows_of(table, key, class_noun=BOTH).empty]
                mark: dict[str, object] = {"color": look.colour(method), "label": look.label(method), "marker": "o"}
                if table is seed:
                    mark |= {"label": f"{look.label(method)}, seed 0", "linestyle": "--", "markerfacecolor": "white"}
                shift = 0.12 * (place - 0.5) + (0.05 if table is seed else -0.05)
                _bars(ax, [(float(np.log2(key.rank)), table, key) for key in there], metric, shift=shift, **mark)
        ax.set_xticks([0, 2, 4], ["1", "4", "16"])

    return _both_scores(fill, out, name, title=f"{iterations} iterations", xlabel="rank")


def over_widths(tables: "Mapping[tuple[int, int], pd.DataFrame]", out: Path, name: str, *, key: CellKey) -> Picture:
    """Both scores over the length of Stage 1, a line for every r1."""
    from matplotlib import colormaps

    sizes = sorted({size for size, _ in tables})
    shades = colormaps["cividis"](np.linspace(0.9, 0.0, len(sizes)))

    def fill(ax: "Axes", metric: str) -> None:
        for place, (size, shade) in enumerate(zip(sizes, shades, strict=True)):
            cells = [(steps, tables[r1, steps], key) for r1, steps in sorted(tables) if r1 == size]
            mark = {"color": shade, "label": f"r1 = {size}", "marker": look.rival_mark(place + 1)}
            _bars(ax, cells, metric, shift=8.0 * (place - 1.5), **mark)

    title = f"Women, {key.iterations} iterations of Stage 2"
    return _both_scores(fill, out, name, title=title, xlabel="Stage-1 iterations")


def over_people(tables: "Mapping[int, pd.DataFrame]", out: Path, name: str) -> Picture:
    """Both scores over the number of people in Stage 1, a line for every checkpoint."""

    def fill(ax: "Axes", metric: str) -> None:
        for place, n in enumerate((250, 375, 625)):
            cells = [(float(np.log2(c / 50)), table, CellKey("meta_lora", 1, n)) for c, table in tables.items()]
            mark = {"color": look.colour("meta_lora"), "alpha": 0.45 + 0.25 * place, "label": f"{n} iterations"}
            _bars(ax, cells, metric, shift=0.03 * (place - 1), marker=look.rival_mark(place + 1), **mark)
        ax.set_xticks(range(len(tables)), [str(count) for count in tables])

    return _both_scores(fill, out, name, title="Equal Stage-1 iterations", xlabel="people in Stage 1")


def _both_scores(fill: "Callable[[Axes, str], None]", out: Path, name: str, *, title: str, xlabel: str) -> Picture:
    """R-FaceSim and CLIP-T beside each other over the same thing."""
    from matplotlib.figure import Figure

    with look.style():
        figure = Figure(figsize=(8.8, 3.4))
        axes = figure.subplots(1, 2)
        for ax, metric in zip(axes, NAMES, strict=True):
            fill(ax, metric)
            ax.set_xlabel(xlabel)
            ax.set_ylabel(NAMES[metric])
        axes[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.suptitle(f"{title}: {WORLD}", x=0.01, ha="left")
        figure.tight_layout()
        return look.save(figure, out, name, vector="pdf", dpi=150)


def _frontier(ax: "Axes", scores: "pd.DataFrame", method: str) -> None:
    found = frontier(scores, from_base(scores, method), resamples=2000)  # a band is looked at, not read off
    colour = look.colour(method)
    ax.fill_between(100 * found.clip_t, 100 * found.low, 100 * found.high, color=colour, alpha=0.15, linewidth=0)
    ax.plot(100 * found.clip_t, 100 * found.mean, color=colour, linewidth=1.8)
    cells = from_base(scores, method)
    x, y = ([100 * cell_interval(scores, key, metric).mean for key in cells] for metric in ("clip_t", "r_face_sim"))
    ax.plot(x, y, color=colour, linestyle="", marker="o", markersize=4, markeredgecolor="white", markeredgewidth=0.5)


def _over(
    ax: "Axes", cells: "Sequence[tuple[float, pd.DataFrame, CellKey]]", metric: str, method: str, *, place: int
) -> None:
    if cells:
        span = max(x for x, _, _ in cells) - min(x for x, _, _ in cells)
        mark = {"color": look.colour(method), "label": look.label(method), "marker": ("o", "s", "^")[place % 3]}
        _bars(ax, cells, metric, shift=0.012 * span * (place - 1), **mark)


def _bars(
    ax: "Axes", cells: "Sequence[tuple[float, pd.DataFrame, CellKey]]", metric: str, *, shift: float, **mark: object
) -> None:
    found = [cell_interval(scores, key, metric) for _, scores, key in cells]
    y = np.array([100 * one.mean for one in found])
    ends = np.array([[100 * (one.mean - one.low), 100 * (one.high - one.mean)] for one in found]).T
    style = {"linewidth": 1.5, "elinewidth": 0.8, "markersize": 4.5, "capsize": 0}
    ax.errorbar([x + shift for x, _, _ in cells], y, yerr=ends, **style, **mark)  # pyright: ignore[reportArgumentType]
