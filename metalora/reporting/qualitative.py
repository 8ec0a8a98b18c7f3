"""A grid of pictures as a figure for print: text stays text, pictures stay as they were drawn (Fig. 4, 7, 8)."""

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metalora.reporting import look
from metalora.reporting.grids import Grid, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TILE = 0.82
"""Inches of a picture's side."""
_LABEL, _TITLE, _HEADER, _NOTE, _GAP = 0.98, 0.24, 0.36, 0.13, 0.04


def draw_grid(grid: Grid, *, folder: Path, note: bool = True) -> look.Picture:
    """Draw a grid as PDF and PNG.

    Args:
        note: whether each picture's word (its score) stands below it.
    """
    from matplotlib.figure import Figure

    rows = [*([grid.photos] if grid.photos else []), *grid.rows]
    columns = max(len(row.tiles) for row in rows)
    step = TILE + (_NOTE if note else 0) + _GAP
    width, height = _LABEL + columns * (TILE + _GAP), _TITLE + _HEADER + len(rows) * step
    with look.style():
        sheet = _Sheet(Figure(figsize=(width, height)), width=width, height=height)
        title = textwrap.wrap(grid.title, int(14 * width))
        sheet.say(0.0, height - _TITLE + 0.06, "\n".join(title), fontsize=8, weight="bold", va="bottom")
        top = height - _TITLE
        for row in rows:
            if row is grid.rows[0]:
                for column, text in enumerate(grid.columns):
                    words = "\n".join(textwrap.wrap(text, 16)[:4])
                    x = _LABEL + column * (TILE + _GAP) + TILE / 2
                    sheet.say(x, top - _HEADER + 0.04, words, fontsize=6, ha="center", va="bottom")
                top -= _HEADER
            _row(sheet, row, top=top, note=note)
            top -= step
        return look.save(sheet.figure, folder, grid.name, vector="pdf", dpi=200)


@dataclass(frozen=True)
class _Sheet:
    """A figure that is written on in inches from its lower left corner."""

    figure: "Figure"
    width: float
    height: float

    def say(self, x: float, y: float, text: str, **how: Any) -> None:
        self.figure.text(x / self.width, y / self.height, text, **how)

    def show(self, x: float, y: float, picture: Any, *, side: float) -> None:
        ax = self.figure.add_axes((x / self.width, y / self.height, side / self.width, side / self.height))
        ax.set_axis_off()
        ax.imshow(picture, interpolation="lanczos")


def _row(sheet: _Sheet, row: Row, *, top: float, note: bool) -> None:
    weight = "bold" if row.colour != look.INK else "normal"
    words = "\n".join(textwrap.wrap(row.label, 17))
    sheet.say(0.0, top - TILE / 2, words, fontsize=7, color=row.colour, va="center", weight=weight)
    for column, tile in enumerate(row.tiles):
        if tile.file is None or not tile.file.is_file():
            continue
        x = _LABEL + column * (TILE + _GAP)
        sheet.show(x, top - TILE, _pixels(tile.file), side=TILE)
        if note and tile.note:
            sheet.say(x + TILE / 2, top - TILE - 0.02, tile.note, fontsize=6, ha="center", va="top")


def _pixels(path: Path) -> Any:
    from PIL import Image

    with Image.open(path) as image:
        side = min(image.size)
        box = ((image.width - side) // 2, (image.height - side) // 2)
        return image.convert("RGB").crop((*box, box[0] + side, box[1] + side)).copy()
