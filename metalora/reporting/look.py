"""How figures look: one colour per method, one marker per rank, readable by colour-blind people and in print."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metalora.core.atomic import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = {"lora": "LoRA", "lora_aug": "LoRA+aug", "meta_lora": "Meta-LoRA", "base": "untouched base"}
CLASSES = {"woman": "women", "man": "men", "both": "women and men"}
# Okabe and Ito's palette: told apart with every common colour vision, and by lightness alone.
COLOURS = {"lora": "#7f7f7f", "lora_aug": "#0072b2", "meta_lora": "#d55e00", "base": "#222222"}
MARKERS = {1: "o", 2: "s", 4: "^", 8: "D", 16: "P"}
INK, FAINT = "#222222", "#9a9a9a"
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "metalora",  # the same figure is the same file
    "svg.fonttype": "path",
}


def colour(method: str) -> str:
    """The method's colour; methods without one are black."""
    return COLOURS.get(method, INK)


def label(method: str) -> str:
    """The method's name as the paper writes it."""
    return LABELS.get(method, method)


def marker(rank: int) -> str:
    """The rank's marker."""
    return MARKERS.get(rank, "X")


def marker_size(iterations: int, *, among: tuple[int, ...]) -> float:
    """Marker area in points^2: more iterations, larger."""
    if len(among) < 2:
        return 45.0
    return 20.0 + 70.0 * (iterations - among[0]) / (among[-1] - among[0])


@contextmanager
def style() -> Iterator[None]:
    """The project's matplotlib settings, inside the block only."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):  # pyright: ignore[reportArgumentType]
        yield


@dataclass(frozen=True)
class Picture:
    """One drawn figure: an SVG for the report, a PNG for everything else (None: only the PNG exists)."""

    name: str
    svg: Path | None
    png: Path


def save(figure: "Figure", folder: Path, name: str) -> Picture:
    """Write a figure as SVG and PNG, atomically."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)  # drawn without pyplot: no window, no global state
    for suffix, metadata in (("svg", {"Date": None}), ("png", {})):
        with atomic_path(folder / f"{name}.{suffix}") as path:
            figure.savefig(path, format=suffix, dpi=160, bbox_inches="tight", pad_inches=0.08, metadata=metadata)
    return Picture(name, folder / f"{name}.svg", folder / f"{name}.png")
