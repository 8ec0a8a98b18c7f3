"""From scores to cells: a method at a rank and iteration on a class, with intervals over people.

Everything here reads the table that `score.py` makes and nothing else. Headline scores count a generated image without
a face as 0 where an image with one would have a score; `*_detected` leaves it out.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from metalora.core import metrics
from metalora.core.errors import UserError
from metalora.core.metrics import Interval, PairedDifference, StepsToMatch
from metalora.evaluation.score_table import (
    BASE,
    BASE_SETTING,
    PHOTO_METHODS,
    REFERENCE,
    STRANGER,
    TEST_PHOTO,
    bases_of,
    name_of_base,
)

if TYPE_CHECKING:
    import pandas as pd

BOTH = "both"
METRICS = ("r_face_sim", "face_sim", "clip_t", "clip_i", "face_found")
_COLUMN = {name: name for name in METRICS} | {
    "r_face_sim_detected": "r_face_sim",
    "face_sim_detected": "face_sim",
}
_COMPARED = {"r_face_sim": "test_photos", "face_sim": "reference_faces"}
"""How many faces a score compares with; where there is none, a miss is as little measured as a face would be."""


@dataclass(frozen=True)
class CellKey:
    """Names a cell; the untouched base is rank 0 at iteration 0.

    `base` is empty, but for an untouched base that is not the table's own (`own_base`): its name.
    """

    method: str
    rank: int
    iterations: int
    base: str = ""


@dataclass(frozen=True)
class Cell:
    """One point of the paper's figures: a method on one class, with intervals over people.

    "both" is all people; such a cell exists only once every class of the table has it.
    """

    key: CellKey
    class_noun: str
    scores: Mapping[str, Interval]
    """By metric, and by r_face_sim_detected and face_sim_detected."""
    images: int
    people: int


def class_nouns(scores: "pd.DataFrame") -> tuple[str, ...]:
    """The classes of the table, and "both" when there are several."""
    found = tuple(sorted(scores["class_noun"].unique()))
    return (*found, BOTH) if len(found) > 1 else found


def cell_keys(scores: "pd.DataFrame") -> tuple[CellKey, ...]:
    """Every cell of generated images in the table, its own base first, then other bases."""
    generated = scores.loc[~scores["method"].isin(PHOTO_METHODS)]
    bases = bases_of(generated)
    others = bases.where(bases != own_base(scores), "")
    found = generated[["method", "rank", "iterations"]].assign(base=others).drop_duplicates()
    keys = [CellKey(str(method), int(rank), int(step), str(base)) for method, rank, step, base in found.to_numpy()]
    return tuple(sorted(keys, key=lambda key: (key.method != BASE, key.method, key.rank, key.iterations, key.base)))


def own_base(scores: "pd.DataFrame") -> str:
    """The name of the untouched base that a table's methods are held against; empty where there is none.

    Of several it is the one that most images from LoRAs stand on, else most of any method's.
    """
    names = bases_of(scores)
    bases = sorted(set(names) - {""})
    if len(bases) < 2:
        return bases[0] if bases else ""
    generated = scores[~scores["method"].isin((*PHOTO_METHODS, BASE))]
    stands_on = [name_of_base(*row) for row in generated[list(BASE_SETTING)].itertuples(index=False)]
    of_loras = Counter(name for name, rank in zip(stands_on, generated["rank"], strict=True) if rank > 0)
    of_all = Counter(stands_on)
    return max(bases, key=lambda name: (of_loras[name], of_all[name]))


def on_own_base(scores: "pd.DataFrame") -> "pd.DataFrame":
    """The table without untouched bases that are not its own."""
    return scores.loc[bases_of(scores).isin(("", own_base(scores)))]


def cells(scores: "pd.DataFrame") -> tuple[Cell, ...]:
    """Every cell of every class."""
    return tuple(
        cell(scores, key, class_noun=class_noun)
        for class_noun in class_nouns(scores)
        for key in cell_keys(scores)
        if not _rows(scores, key, class_noun=class_noun).empty
    )


def cell(scores: "pd.DataFrame", key: CellKey, *, class_noun: str) -> Cell:
    """Average a cell: over prompts and seeds, then over people; NaN of nobody where there is no such cell."""
    rows = _rows(scores, key, class_noun=class_noun)
    people = sorted(rows["identity"].unique())
    found = {name: metrics.bootstrap(_means(rows, name, among=people)) for name in _COLUMN}
    return Cell(key, class_noun, found, images=len(set(rows["file"])), people=len(people))


def _rows(scores: "pd.DataFrame", key: CellKey, *, class_noun: str) -> "pd.DataFrame":
    """A cell's rows; none of "both" while a class of the table lacks the cell."""
    rows = _select(scores, key, class_noun=class_noun)
    lacking = class_noun == BOTH and set(rows["class_noun"].unique()) != set(scores["class_noun"].unique())
    return rows.iloc[:0] if lacking else rows


def _select(scores: "pd.DataFrame", key: CellKey, *, class_noun: str) -> "pd.DataFrame":
    rows = scores.loc[(scores["rank"] == key.rank) & (scores["iterations"] == key.iterations)]  # numbers first: faster
    rows = rows.loc[rows["method"] == key.method]
    if key.method == BASE:
        rows = rows.loc[bases_of(rows) == (key.base or own_base(scores))]
    return rows if class_noun == BOTH else rows.loc[rows["class_noun"] == class_noun]


def _means(rows: "pd.DataFrame", metric: str, *, among: Sequence[str]) -> np.ndarray:
    if _COLUMN.get(metric, metric) not in rows:
        return np.full(len(among), np.nan)
    values = rows[_COLUMN.get(metric, metric)].to_numpy(dtype=np.float64)
    if metric in _COMPARED:
        missed = rows["face_found"] == 0  # NaN: not measured, stays NaN
        if _COMPARED[metric] in rows:
            missed &= rows[_COMPARED[metric]] != 0
        values = metrics.misses_as_zero(values, ~missed.to_numpy())
    return metrics.identity_means(values, list(rows["identity"]), among_K=among)


def rows_of(scores: "pd.DataFrame", key: CellKey, *, class_noun: str) -> "pd.DataFrame":
    """A cell's rows; none of "both" while a class of the table lacks the cell."""
    return _rows(scores, key, class_noun=class_noun)


def person_means(rows: "pd.DataFrame", metric: str, *, among: Sequence[str]) -> np.ndarray:
    """Each person's mean over prompts and seeds, in the order of `among`; NaN where nothing was measured.

    A face that was not found counts as 0, except in `*_detected`.
    """
    return _means(rows, metric, among=among)


def compare(scores: "pd.DataFrame", a: CellKey, b: CellKey, *, metric: str, class_noun: str = BOTH) -> PairedDifference:
    """Paired comparison of two cells on the people that both have."""
    rows_a, rows_b = (_rows(scores, key, class_noun=class_noun) for key in (a, b))
    people = sorted(set(rows_a["identity"]) & set(rows_b["identity"]))
    a_K, b_K = (_means(rows.loc[rows["identity"].isin(people)], metric, among=people) for rows in (rows_a, rows_b))
    return metrics.paired_bootstrap(a_K, b_K)


def steps_to_match(
    scores: "pd.DataFrame",
    *,
    method: str,
    target: CellKey,
    class_noun: str = BOTH,
    resamples: int = metrics.RESAMPLES,
) -> StepsToMatch | None:
    """Iterations at which a method, at the target's rank, first has the target cell's R-FaceSim.

    Only cells that the class has are used ("both": that every class has), and only people that all of them have are
    counted. None: the target or the whole curve is not there yet.
    """
    wanted = [key for key in cell_keys(scores) if key == target or (key.method, key.rank) == (method, target.rank)]
    tables = {key: rows for key in wanted if not (rows := _rows(scores, key, class_noun=class_noun)).empty}
    curve = [key for key in tables if key.method == method]
    if not curve or target not in tables:
        return None
    means, known = {}, []
    everybody = sorted(set.union(*(set(rows["identity"]) for rows in tables.values())))
    for metric in ("r_face_sim", "clip_t"):
        of_cell = {key: _means(rows, metric, among=everybody) for key, rows in tables.items()}
        known_K = np.isfinite(np.stack(list(of_cell.values()))).all(axis=0)
        if not known_K.any():
            return None
        means[metric] = {key: values_K[known_K] for key, values_K in of_cell.items()}
        known.append(known_K)
    return metrics.steps_to_match(
        [key.iterations for key in curve],
        r_face_sim_CK=np.stack([means["r_face_sim"][key] for key in curve]),
        clip_t_CK=np.stack([means["clip_t"][key] for key in curve]),
        target_r_face_sim_K=means["r_face_sim"][target],
        target_clip_t_K=means["clip_t"][target],
        target_iterations=target.iterations,
        same_people=bool((known[0] == known[1]).all()),
        resamples=resamples,
    )


@dataclass(frozen=True)
class Bounds:
    """What real photos reach: between which values an R-FaceSim lies.

    reference: the reference photo scored as if it were generated. test: each test photo against the person's others.
    stranger: other people of the class. Intervals over people; `missed` of `photos` had no face that was found.
    """

    reference: Interval
    test: Interval
    stranger: Interval
    photos: int
    missed: int


def bounds(scores: "pd.DataFrame", *, class_noun: str = BOTH) -> Bounds | None:
    """Ceilings and floor of R-FaceSim from the rows of real photos; None when the table has none.

    Photos without a face are left out here: a detector's miss on a real photo says nothing about likeness.
    """
    found = {}
    for method in PHOTO_METHODS:
        rows = _select(scores, CellKey(method, 0, 0), class_noun=class_noun)
        people = sorted(rows["identity"].unique())
        found[method] = metrics.bootstrap(_means(rows, "r_face_sim_detected", among=people))
    real = [_select(scores, CellKey(method, 0, 0), class_noun=class_noun) for method in (REFERENCE, TEST_PHOTO)]
    faces = np.concatenate([rows["face_found"].to_numpy(dtype=np.float64) for rows in real])
    if not faces.size:
        return None
    missed = int((faces == 0).sum())
    return Bounds(found[REFERENCE], found[TEST_PHOTO], found[STRANGER], photos=faces.size, missed=missed)


@dataclass(frozen=True)
class RateScore:
    """What a method reaches with one learning rate."""

    rate: float
    r_face_sim: float
    clip_t: float
    clip_t_drop: float
    """How far below the untouched base."""
    allowed: bool
    """Whether the drop is within the budget."""


@dataclass(frozen=True)
class RateChoice:
    """A learning rate and the table it was chosen from, slowest rate first."""

    method: str
    chosen: RateScore
    table: tuple[RateScore, ...]


def choose_learning_rate(
    scores: Mapping[float, "pd.DataFrame"],
    *,
    method: str = "lora_aug",
    rank: int = 1,
    iterations: int = 625,
    budget: float = 0.03,
    class_noun: str = BOTH,
) -> RateChoice:
    """The rate with the highest R-FaceSim among those whose CLIP-T is at most `budget` below the untouched base.

    Args:
        scores: score tables of validation people by learning rate; each holds the base and the cell.
        budget: in cosine.

    Raises:
        UserError: a table lacks the cell or the base, or no rate keeps the budget.
    """
    key, table = CellKey(method, rank, iterations), []
    for rate, frame in sorted(scores.items()):
        missing = [
            name
            for name, k in (("the base", CellKey(BASE, 0, 0)), (str(key), key))
            if _rows(frame, k, class_noun=class_noun).empty
        ]
        if missing:
            raise UserError(f"learning rate {rate:g} has no scores of {' and '.join(missing)}", key="learning_rate")
        scored = cell(frame, key, class_noun=class_noun).scores
        drop = cell(frame, CellKey(BASE, 0, 0), class_noun=class_noun).scores["clip_t"].mean - scored["clip_t"].mean
        table.append(
            RateScore(rate, scored["r_face_sim"].mean, scored["clip_t"].mean, drop, allowed=bool(drop <= budget))
        )
    allowed = [row for row in table if row.allowed]
    if not allowed:
        raise UserError(
            "no learning rate keeps CLIP-T",
            expected=f"at most {budget:g} below the base",
            got=", ".join(f"{row.rate:g}: {row.clip_t_drop:.3f}" for row in table),
            key="learning_rate",
        )
    return RateChoice(method, max(allowed, key=lambda row: row.r_face_sim), tuple(table))
