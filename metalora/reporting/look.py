"""How figures look: one colour per method, one marker per rank, readable by colour-blind people and in print."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metalora.core.atomic import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = {
    "base": "untouched base",
    "lora": "LoRA",
    "lora_aug": "LoRA+aug",
    "meta_lora": "Meta-LoRA",
    "random_down": "random Meta-Down",
    "spectrum_down": "random directions",
    "ip_adapter": "IP-Adapter-like",
    "dreambooth": "DreamBooth",
    "dreambooth_aug": "DreamBooth+aug",
    "textual_inversion": "textual inversion",
    "textual_inversion_aug": "textual inversion+aug",
    "pulid": "PuLID (FLUX.1-dev)",
    "instantid_sdxl": "InstantID (SD-XL)",
    "instantid_lightning": "InstantID (SD-XL Lightning)",
    "photomaker_sdxl": "PhotoMaker (SD-XL)",
    "photomaker_lightning": "PhotoMaker (SD-XL Lightning)",
}
"""Names of methods; the order is the one in which figures and tables list them."""
CLASSES = {"woman": "women", "man": "men", "both": "women and men"}
# After Okabe and Ito: told apart with every common colour vision; in grey print the three LoRA methods by lightness
# (L* 35, 54, 66), rivals by mark and line.
COLOURS = {
    "base": "#222222",
    "lora": "#a0a0a0",
    "lora_aug": "#00558c",
    "meta_lora": "#d55e00",
    "random_down": "#5d3a9b",
    "spectrum_down": "#9d8ac7",
    "ip_adapter": "#009e73",
    "dreambooth": "#cc79a7",
    "dreambooth_aug": "#8c4a70",
    "textual_inversion": "#e69f00",
    "textual_inversion_aug": "#a87400",
    "pulid": "#009e73",
    "instantid_sdxl": "#cc79a7",
    "instantid_lightning": "#8c4a70",
    "photomaker_sdxl": "#e69f00",
    "photomaker_lightning": "#a87400",
}
# Rivals have no rank and no curve: a mark of their own and a line style of their own, so that print needs no colour.
_RIVAL_MARKS = ("*", "X", "p", "v", "<", ">", "h")
_RIVAL_LINES = ((0, (6, 2)), (0, (3, 1.5)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)), "-.", ":")
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
    "pdf.fonttype": 42,  # TrueType: text that can be searched and edited
    "svg.hashsalt": "metalora",  # the same figure is the same file
    "svg.fonttype": "path",
}


def colour(method: str) -> str:
    """The method's colour; methods without one are black."""
    return COLOURS.get(method, INK)


def label(method: str) -> str:
    """The method's name as the paper writes it."""
    return LABELS.get(method, method)


def order(method: str) -> tuple[int, str]:
    """Where figures and tables list a method; unknown ones come last, by name."""
    known = list(LABELS)
    return (known.index(method) if method in LABELS else len(known), method)


def rival_mark(place: int) -> str:
    """The marker of the n-th rival of a figure."""
    return _RIVAL_MARKS[place % len(_RIVAL_MARKS)]


def rival_line(place: int) -> Any:
    """The line style of the n-th rival of a figure."""
    return _RIVAL_LINES[place % len(_RIVAL_LINES)]


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
    """One drawn figure as files: SVG for the report, PDF for a paper (None: not drawn), PNG for everything else."""

    name: str
    svg: Path | None
    png: Path
    pdf: Path | None = None


def save(figure: "Figure", folder: Path, name: str, *, vector: str = "svg", dpi: int = 160) -> Picture:
    """Write a figure as PNG and as SVG or PDF, atomically; the same figure is the same file.

    Args:
        vector: "svg" or "pdf".
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)  # drawn without pyplot: no window, no global state
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
    files = {}
    for suffix in (vector, "png"):
        files[suffix] = folder / f"{name}.{suffix}"
        with atomic_path(files[suffix]) as path:
            figure.savefig(path, format=suffix, dpi=dpi, bbox_inches="tight", pad_inches=0.08, metadata=undated[suffix])
    return Picture(name, files.get("svg"), files["png"], files.get("pdf"))
