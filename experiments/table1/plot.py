"""Table 1: best of five, seen with other photos of the person and with the training photo.

    python -m experiments.table1.plot [FOLDER ...] [out=DIR]

Here a machine looks, not people: the face embedder. Of all models' images of one person, prompt and seed it takes the
one nearest to the person's unseen photos (R-FaceSim) or to the training photo (FaceSim). It sees likeness alone,
neither prompt nor beauty. What people say is `metalora study analyse`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.shown import Claim, Shown, points, show, told, verdict
from experiments.table3.plot import TUNING_FREE, keys_of
from metalora.core import metrics
from metalora.evaluation.curves import CellKey, rows_of
from metalora.reporting import look
from metalora.reporting.study import Study, paper_reference
from metalora.reporting.tables import NONE, Table

if TYPE_CHECKING:
    import pandas as pd

CELL = ["identity", "prompt_id", "seed"]
"""What the images that stand against each other share."""
COLUMNS = {"multi": "r_face_sim", "single": "face_sim"}
LEFT_OUT = ("textual_inversion", "textual_inversion_aug", "dreambooth_aug")
"""So that there are five, as in the paper: without those that no paper's row is like."""


def make(study: Study, out: Path) -> Shown:
    """Both columns, and the claim about the shift between them."""
    del out
    keys = [key for key in keys_of(study) if key.method not in LEFT_OUT]
    tables = {key: rows_of(study.scores, key, class_noun=study.overall) for key in keys}
    won = {view: wins(list(tables.values()), score) for view, score in COLUMNS.items()}
    return Shown((_table(study, keys, won),), (), tuple(_claims(keys, won)))


def wins(tables: Sequence["pd.DataFrame"], score: str) -> np.ndarray:
    """How often each table's image has the highest score, by table and person; ties are shared, no face is last.

    Args:
        tables: one model's rows each; only cells that all have are judged.

    Returns:
        [models, people], each column adding up to 1.
    """
    import pandas as pd

    judged = [rows.loc[rows["face_found"].notna()].set_index(CELL)[score] for rows in tables]
    together = pd.concat(judged, axis=1, join="inner").fillna(-np.inf).to_numpy()
    people = pd.concat(judged, axis=1, join="inner").index.get_level_values("identity")
    best = together == together.max(axis=1, keepdims=True)
    best[~np.isfinite(together).any(axis=1)] = False  # nobody's face was found: no winner
    shares = best / np.maximum(best.sum(axis=1, keepdims=True), 1)
    of_person = [shares[people == person].sum(axis=0) for person in sorted(set(people))]
    return np.array([row / row.sum() for row in of_person if row.sum()]).T


def _table(study: Study, keys: Sequence[CellKey], won: dict[str, np.ndarray]) -> Table:
    theirs = {row["method"]: row for row in paper_reference()["user_study"]["table_1"]["rows"]}
    rows = []
    for place, key in enumerate(keys):
        shares = [metrics.bootstrap(of_person[place]) for of_person in (_overall(won), *won.values())]
        paper = theirs.pop(key.method, None)
        texts = [f"{points(s.mean)} ({points(s.low)} to {points(s.high)})" for s in shares]
        rows.append((look.label(key.method), *texts, *_paper(paper)))
    rows += [(str(row["label"]), *(NONE,) * 3, *_paper(row)) for row in theirs.values()]
    header = (
        "model",
        "overall",
        "unseen photos",
        "training photo",
        "paper's people: overall",
        "unseen",
        "training photo",
    )
    people = won["multi"].shape[1]
    title = f"Table 1: how often each is nearest to the person, % (JUDGED BY A MACHINE, {people} people): {study.world}"
    return Table(title, header, tuple(rows))


def _overall(won: dict[str, np.ndarray]) -> np.ndarray:
    """Both views alike, by model and person."""
    return np.mean(list(won.values()), axis=0)


def _paper(row: dict[str, float] | None) -> tuple[str, ...]:
    return tuple(f"{row[view]:.2f}" for view in ("overall", *COLUMNS)) if row else (NONE,) * 3


def _claims(keys: Sequence[CellKey], won: dict[str, np.ndarray]) -> list[Claim]:
    return [_best(keys, won), *_shift(keys, won)]


def _best(keys: Sequence[CellKey], won: dict[str, np.ndarray]) -> Claim:
    claim = "Meta-LoRA is chosen most often, over both views"
    ours = next((n for n, key in enumerate(keys) if key.method == "meta_lora"), None)
    if ours is None or len(keys) < 2:
        return Claim(claim, None, "there is nothing to choose between")
    both = _overall(won)
    gaps = {n: metrics.paired_bootstrap(both[ours], both[n]) for n in range(len(keys)) if n != ours}
    hardest = min(gaps, key=lambda n: gaps[n].mean)
    text = f"{told(gaps[hardest])} of a machine's choices from {look.label(keys[hardest].method)}"
    return Claim(claim, verdict(gaps[hardest]), text + ", which has the most; no people have been asked")


def _shift(keys: Sequence[CellKey], won: dict[str, np.ndarray]) -> list[Claim]:
    claim = "who copies the photo is chosen more often when it is the photo that is looked at"
    free = [n for n, key in enumerate(keys) if key.method in TUNING_FREE]
    if not free:
        return [Claim(claim, None, "no tuning-free method has been run (`make rivals`); no people have been asked")]
    found = []
    for place in free:
        shift = metrics.paired_bootstrap(won["single"][place], won["multi"][place])
        text = f"{look.label(keys[place].method)} {told(shift)} of a machine's choices"
        found.append(Claim(claim, verdict(shift), text + "; no people have been asked"))
    return found


if __name__ == "__main__":
    show("table1", make, sys.argv[1:])
