"""What a benchmark's table says of every method: by class, scenes and styles apart, with bounds and paired tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from metalora.core import metrics
from metalora.core.metrics import Interval
from metalora.evaluation.curves import BOTH, CellKey, bounds, cell_keys, class_nouns, own_base, person_means, rows_of
from metalora.evaluation.score_table import BASE, SECOND

if TYPE_CHECKING:
    import pandas as pd

AVERAGE = "average"
"""The mean of the classes, as the paper averages them; "both" pools the people instead."""


@dataclass(frozen=True)
class Measure:
    """A column of the table, over the prompts of one kind where `kind` says so."""

    name: str
    metric: str
    kind: str = ""
    suffix: str = ""


MEASURES = (
    Measure("clip_t", "clip_t"),
    Measure("clip_t_recontextualized", "clip_t", kind="recontextualized"),
    Measure("clip_t_stylized", "clip_t", kind="stylized"),
    Measure("clip_i", "clip_i"),
    Measure("face_sim", "face_sim"),
    Measure("r_face_sim", "r_face_sim"),
    Measure("face_sim_detected", "face_sim_detected"),
    Measure("r_face_sim_detected", "r_face_sim_detected"),
    Measure("copy_paste", "copy_paste"),
    Measure("face_found", "face_found"),
    Measure("seed_diversity", "seed_diversity"),
    Measure("face_sim_second", "face_sim", suffix=SECOND),
    Measure("r_face_sim_second", "r_face_sim", suffix=SECOND),
)
TESTED = ("r_face_sim", "face_sim", "copy_paste", "clip_t", "clip_i", "seed_diversity", "r_face_sim_second")
"""What methods are compared in."""


@dataclass(frozen=True)
class Standing:
    """One method (at a rank and iteration) on one class: a mean over people with its 95% interval by measure."""

    key: CellKey
    class_noun: str
    scores: Mapping[str, Interval]
    images: int
    people: int


@dataclass(frozen=True)
class PairedTest:
    """Method a minus method b on the people that both have; p of a two-sided sign-flip test over people.

    `classes` are those that both methods have.
    """

    a: CellKey
    b: CellKey
    classes: tuple[str, ...]
    measure: str
    difference: Interval
    p: float
    people: int


def standings(scores: "pd.DataFrame") -> tuple[Standing, ...]:
    """Every method on every class, then on both together and averaged over the classes."""
    found = []
    for key in cell_keys(scores):
        by_class = {
            noun: standing
            for noun in class_nouns(scores)
            if (standing := _standing(scores, key, class_noun=noun)) is not None
        }
        found += by_class.values()
        if BOTH in by_class:
            found.append(_average(key, [s for noun, s in by_class.items() if noun != BOTH], both=by_class[BOTH]))
    return tuple(found)


def _standing(scores: "pd.DataFrame", key: CellKey, *, class_noun: str) -> Standing | None:
    rows = rows_of(scores, key, class_noun=class_noun)
    if rows.empty:
        return None
    people = sorted(rows["identity"].unique())
    measured = {m.name: metrics.bootstrap(_people(rows, m, among=people)) for m in MEASURES}
    return Standing(key, class_noun, measured, images=len(set(rows["file"])), people=len(people))


def _average(key: CellKey, classes: Sequence[Standing], *, both: Standing) -> Standing:
    """Equal weight for every class; the interval from the classes' own, which are of different people."""
    scores = {}
    for name in both.scores:
        of_class = [standing.scores[name] for standing in classes]
        mean = float(np.mean([interval.mean for interval in of_class]))  # NaN where a class was not measured
        low, high = (
            float(np.sqrt(np.sum([(getattr(i, end) - i.mean) ** 2 for i in of_class])) / len(of_class))
            for end in ("low", "high")
        )
        scores[name] = Interval(mean, mean - low, mean + high)
    return Standing(key, AVERAGE, scores, images=both.images, people=both.people)


def _people(rows: "pd.DataFrame", measure: Measure, *, among: Sequence[str]) -> np.ndarray:
    """The mean of every person, NaN where the table does not have the measure."""
    if measure.kind:
        rows = rows.loc[rows["kind"] == measure.kind] if "kind" in rows else rows.iloc[:0]
    if measure.suffix:
        if measure.metric + measure.suffix not in rows:
            return np.full(len(among), np.nan)
        rows = rows.assign(**{measure.metric: rows[measure.metric + measure.suffix]})
    return person_means(rows, measure.metric, among=among)


def paired_tests(scores: "pd.DataFrame") -> tuple[PairedTest, ...]:
    """Every pair of methods (not the base) in every measure and over people of every class that both have."""
    import pandas as pd

    measures = {measure.name: measure for measure in MEASURES}
    nouns = [noun for noun in class_nouns(scores) if noun != BOTH]
    tables = {
        key: {noun: rows for noun in nouns if not (rows := rows_of(scores, key, class_noun=noun)).empty}
        for key in cell_keys(scores)
        if key.method != BASE
    }
    found = []
    for a, b in combinations(tables, 2):
        classes = tuple(noun for noun in nouns if noun in tables[a] and noun in tables[b])
        if not classes:
            continue
        rows_a, rows_b = (pd.concat([tables[key][noun] for noun in classes]) for key in (a, b))
        people = sorted(set(rows_a["identity"]) & set(rows_b["identity"]))
        for name in TESTED:
            of_a, of_b = (
                _people(rows.loc[rows["identity"].isin(people)], measures[name], among=people)
                for rows in (rows_a, rows_b)
            )
            difference_K = (of_a - of_b)[np.isfinite(of_a - of_b)]
            if difference_K.size:
                interval, p = metrics.bootstrap(difference_K), metrics.sign_flip_p(difference_K)
                found.append(PairedTest(a, b, classes, name, interval, p, difference_K.size))
    return tuple(found)


def as_json(scores: "pd.DataFrame") -> dict[str, Any]:
    """Standings, paired tests, and what bounds R-FaceSim, as plain JSON values; what was not measured is null.

    `base` names the untouched bases where there are several.
    """
    several = any(key.base for key in cell_keys(scores))
    return {
        "standings": [
            _name(standing.key)
            | ({"base": standing.key.base or own_base(scores)} if several and standing.key.method == BASE else {})
            | {"class": standing.class_noun, "images": standing.images, "people": standing.people}
            | {name: _interval(interval) for name, interval in standing.scores.items()}
            for standing in standings(scores)
        ],
        "paired_tests": [
            {
                "a": _name(test.a),
                "b": _name(test.b),
                "classes": list(test.classes),
                "measure": test.measure,
                "a_minus_b": _interval(test.difference),
                "p": round(test.p, 5),
                "people": test.people,
            }
            for test in paired_tests(scores)
        ],
        "bounds": {noun: _bounds(scores, noun) for noun in class_nouns(scores)},
    }


def _bounds(scores: "pd.DataFrame", class_noun: str) -> dict[str, Any] | None:
    found = bounds(scores, class_noun=class_noun)
    if found is None:
        return None
    return {
        "ceiling_reference_photo": _interval(found.reference),
        "ceiling_test_photos": _interval(found.test),
        "floor_strangers": _interval(found.stranger),
        "photos": found.photos,
        "photos_without_a_found_face": found.missed,
    }


def _name(key: CellKey) -> dict[str, Any]:
    return {"method": key.method, "rank": key.rank, "iterations": key.iterations}


def _interval(interval: Interval) -> dict[str, float] | None:
    if not np.isfinite(interval.mean):
        return None
    return {name: round(getattr(interval, name), 5) for name in ("mean", "low", "high")}
