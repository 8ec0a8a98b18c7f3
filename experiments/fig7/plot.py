"""Figures 7 and 8: every method on scenes and styles, women and men.

Nobody is picked: people by name, prompts in order.

python -m experiments.fig7.plot [FOLDER ...] [out=DIR]
"""

import sys
from pathlib import Path

import numpy as np

from experiments.shown import Claim, Shown, points, show
from metalora.evaluation.curves import CellKey, rows_of
from metalora.evaluation.score_table import BASE
from metalora.reporting import look
from metalora.reporting.grids import Grid, Row, Tile, cell_tile, reference_tile, short_prompt
from metalora.reporting.qualitative import draw_grid
from metalora.reporting.study import Study
from metalora.reporting.tables import NONE, Table

ROWS = 8
NAMES = {"woman": "fig7", "man": "fig8"}


def shown_keys(study: Study) -> list[CellKey]:
    """The base, the LoRA methods' operating points, the rivals: those that have been run."""
    keys = (CellKey(BASE, 0, 0), *reversed(study.operating_points), *study.rivals)
    return [key for key in keys if study.cell(key)]


def make(study: Study, out: Path) -> Shown:
    """Two grids, and what the shown images score."""
    pictures, rows = [], []
    keys = shown_keys(study)
    for noun, name in NAMES.items():
        if noun not in study.classes:
            continue
        people = _people(study, noun, keys)
        drawn = [key for key in keys if any(len(rows_of(own, key, class_noun=noun)) for _, _, own in people)]
        grid = Grid(
            name,
            f"{look.CLASSES[noun].capitalize()}; below each image its CLIP-T: {study.world}",
            *_grid(people, drawn),
        )
        pictures.append(draw_grid(grid, folder=out))
        rows += [(name, look.label(key.method), *_means(people, key, noun)) for key in drawn]
    header = ("figure", "method", "CLIP-T", "CLIP-I")
    claim = "Meta-LoRA follows scene and style while it keeps the person"
    told = "a picture to look at; people with one photo have no R-FaceSim, so likeness is read off the pictures"
    table = Table("The shown images alone (the paper shows pictures, no numbers)", header, tuple(rows))
    return Shown((table,), tuple(pictures), (Claim(claim, None, told),))


def _people(study: Study, noun: str, keys: list[CellKey]):
    scores = study.scores
    rows = scores[(scores["class_noun"] == noun) & scores["clip_t"].notna()]
    methods = rows[rows["method"].isin([key.method for key in keys])]
    identities = sorted(methods[methods["method"] != BASE]["identity"].unique())
    prompts = sorted(methods["prompt_id"].unique())
    chosen = [(identities[n % len(identities)], prompts[n % len(prompts)]) for n in range(min(ROWS, len(prompts)))]
    return [
        (identity, prompt, rows[(rows["identity"] == identity) & (rows["prompt_id"] == prompt)])
        for identity, prompt in chosen
    ]


def _grid(people, keys: list[CellKey]) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    lines = []
    for _, _, own in people:
        first = own.iloc[0]
        words = short_prompt(first["prompt"], first["class_noun"])
        tiles = [Tile(reference_tile(own, first["identity"]).file)]
        tiles += [cell_tile(own, key, score="clip_t") for key in keys]
        lines.append(Row(words, look.INK, tuple(tiles)))
    columns = ("reference", *(f"{look.label(key.method)} {key.iterations or ''}".strip() for key in keys))
    return columns, tuple(lines)


def _means(people, key: CellKey, noun: str) -> tuple[str, str]:
    found = []
    for column in ("clip_t", "clip_i"):
        values = [rows_of(own, key, class_noun=noun)[column] for _, _, own in people]
        mean = np.mean([value.iloc[0] for value in values if len(value)]) if any(map(len, values)) else np.nan
        found.append(points(float(mean)) if np.isfinite(mean) and (key.method, column) != (BASE, "clip_i") else NONE)
    return found[0], found[1]


if __name__ == "__main__":
    show("fig7", make, sys.argv[1:])
