"""Figure 4: left, four women and what each method makes of them; right, one of them over seeds.

    python -m experiments.fig4.plot [FOLDER ...] [out=DIR]      # the seeds come from sets in the outputs (`make sets`)

Nobody is picked: the first people and prompts by name.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.fig7.plot import shown_keys
from experiments.shown import Claim, Shown, by_person, outputs, paired, points, show, study_of, told, verdict
from metalora.evaluation.curves import CellKey, rows_of
from metalora.reporting import look
from metalora.reporting.grids import Grid, Row, Tile, cell_tile, reference_tile, short_prompt
from metalora.reporting.qualitative import draw_grid
from metalora.reporting.study import Study
from metalora.reporting.tables import NONE, Table

if TYPE_CHECKING:
    import pandas as pd

NOUN = "woman"
FRONTAL, SCENES = 2, 2
SEEDS = 3
"""Columns of the left part: people with several photos (R-FaceSim), and people with one (CLIP-T)."""
MAKE_SETS = "no sets of several seeds (`make sets`)"


def make(study: Study, out: Path) -> Shown:
    """Both parts, R-FaceSim and CLIP-T of what is shown, and the claim about seeds."""
    left, table = _methods(study)
    pictures = [draw_grid(left, folder=out)]
    folder = outputs() / "sets"
    several = study.scores.loc[study.scores["clip_t"].notna(), "seed"].nunique() > 1
    if not several and not folder.is_dir():
        return Shown((table,), tuple(pictures), (Claim(_CLAIM, None, MAKE_SETS),))
    sets = study if several else study_of([folder])
    pictures += [draw_grid(grid, folder=out) for grid in _seeds(sets)]
    return Shown((table,), tuple(pictures), tuple(_claims(sets)))


_CLAIM = "over seeds Meta-LoRA's pictures differ more than a tuning-free method's"


def _methods(study: Study) -> tuple[Grid, Table]:
    scores = study.scores[study.scores["class_noun"] == NOUN]
    keys = shown_keys(study)
    generated = scores[scores["method"].isin([key.method for key in keys if key.rank or key.iterations])]
    columns = [*_first(generated, "r_face_sim", FRONTAL), *_first(generated, "clip_t", SCENES)]
    owns = [
        (score, scores[(scores["identity"] == who) & (scores["prompt_id"] == what)]) for score, who, what in columns
    ]
    photos = Row("training photo", look.INK, tuple(_photo(own) for _, own in owns))
    lines = [
        Row(_name(key), look.colour(key.method), tuple(cell_tile(own, key, score=score) for score, own in owns))
        for key in keys
    ]
    words = tuple(short_prompt(own["prompt"].iloc[0], NOUN) for _, own in owns)
    shown = f"R-FaceSim ({FRONTAL} left), CLIP-T ({SCENES} right): {study.world}"
    grid = Grid("fig4", shown, words, tuple(lines), photos=photos)
    rows = [(_name(key), *(_note(cell_tile(own, key, score=score)) for score, own in owns)) for key in keys]
    return grid, Table("What stands below the pictures", ("method", *words), tuple(rows))


def _first(rows: "pd.DataFrame", score: str, count: int) -> list[tuple[str, str, str]]:
    """The first people by name, each with a prompt of their own."""
    frontal = score == "r_face_sim"
    own = rows[rows["face_found"].notna()] if frontal else rows[rows["clip_t"].notna()]
    people, prompts = sorted(own["identity"].unique())[:count], sorted(own["prompt_id"].unique())
    step = max(1, len(prompts) // count)
    return [(score, who, prompts[min(n * step, len(prompts) - 1)]) for n, who in enumerate(people)]


def _photo(own: "pd.DataFrame") -> Tile:
    return Tile(reference_tile(own, own["identity"].iloc[0]).file)


def _name(key: CellKey) -> str:
    return f"{look.label(key.method)} {key.iterations or ''}".strip()


def _note(tile: Tile) -> str:
    return tile.note or NONE


def _seeds(sets: Study) -> list[Grid]:
    """One woman, one prompt: methods down, seeds across."""
    scores = sets.scores[(sets.scores["class_noun"] == NOUN) & sets.scores["clip_t"].notna()]
    keys = sorted(
        {key for key in (*sets.operating_points, *sets.rivals) if sets.cell(key)},
        key=lambda key: look.order(key.method),
    )
    people = sorted(scores[scores["method"] != "base"]["identity"].unique())
    if not people:
        return []
    own = scores[scores["identity"] == people[0]]
    own = own[own["prompt_id"] == sorted(own["prompt_id"].unique())[0]]
    seeds = sorted(own["seed"].unique())[:SEEDS]
    lines = [
        Row(
            _name(key),
            look.colour(key.method),
            tuple(cell_tile(own[own["seed"] == seed], key, score="clip_t") for seed in seeds),
        )
        for key in reversed(keys)
    ]
    title = f"{short_prompt(own['prompt'].iloc[0], NOUN)}; CLIP-T: {sets.world}"
    photos = Row("training photo", look.INK, (_photo(own),))
    return [Grid("fig4_seeds", title, tuple(f"seed {seed}" for seed in seeds), tuple(lines), photos=photos)]


def _claims(sets: Study) -> list[Claim]:
    ours = next((key for key in sets.operating_points if key.method == "meta_lora" and sets.cell(key)), None)
    found = []
    for rival in sets.rivals if ours else ():
        a, b = (
            by_person(rows_of(sets.scores, key, class_noun=sets.overall), "seed_diversity")
            for key in (ours, rival)
            if key
        )
        gap = paired(a, b)
        text = f"{points(a.mean())} (1 - CLIP cosine, %) against {points(b.mean())} of {look.label(rival.method)}"
        text += f", {told(gap)} apart, {gap.identities} people"
        found.append(Claim(_CLAIM, verdict(gap), text))
    return found or [Claim(_CLAIM, None, MAKE_SETS)]


if __name__ == "__main__":
    show("fig4", make, sys.argv[1:])
