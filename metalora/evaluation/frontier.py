"""How far one method's fitted trade-off lies above another's (Fig. 3 and 5), with an interval over people."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from metalora.core.metrics import RESAMPLES, ROUNDING, reach, resample_weights, trend
from metalora.evaluation.curves import BOTH, CellKey, cell_keys, person_means, rows_of

if TYPE_CHECKING:
    import pandas as pd

POINTS = 50
"""Places at which two fits are compared."""


@dataclass(frozen=True)
class FrontierGap:
    """Mean R-FaceSim of one fit above another between two values of CLIP-T, all as cosines; 95% over people."""

    mean: float
    low: float
    high: float
    clip_t: tuple[float, float]
    cells: tuple[int, int]
    """Cells of either method behind its fit."""


def frontier_gap(
    scores: "pd.DataFrame",
    *,
    method: str,
    other: str,
    class_noun: str = BOTH,
    resamples: int = 1000,
    seed: int = 0,
) -> FrontierGap | None:
    """Compare the polynomial fits of R-FaceSim over CLIP-T where both methods have cells.

    Each resample draws people anew, those of R-FaceSim and those of CLIP-T apart, and fits again; all cells of both
    methods see the same people. The interval is widened as a t interval is, for few people.

    Returns:
        None while either method has fewer than three cells, or their CLIP-T do not overlap.
    """
    keys = [_of(scores, name, class_noun=class_noun) for name in (method, other)]
    if min(map(len, keys)) < 3:
        return None
    every = [*keys[0], *keys[1]]
    clip_CK, face_CK = (_table(scores, every, metric, class_noun=class_noun) for metric in ("clip_t", "r_face_sim"))
    if min(clip_CK.shape[1], face_CK.shape[1]) < 2:
        return None
    count = len(keys[0])
    clip_C = clip_CK.mean(axis=1)
    low = max(clip_C[:count].min(), clip_C[count:].min())
    high = min(clip_C[:count].max(), clip_C[count:].max())
    if low >= high:
        return None
    line = np.linspace(low, high, POINTS)

    def gap(clip_C: np.ndarray, face_C: np.ndarray) -> float:
        fits = [trend(clip_C[part], face_C[part]) for part in (slice(count), slice(count, None))]
        return float((fits[0](line) - fits[1](line)).mean())

    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        clip = rng.integers(0, clip_CK.shape[1], clip_CK.shape[1])
        face = rng.integers(0, face_CK.shape[1], face_CK.shape[1])
        drawn.append(gap(clip_CK[:, clip].mean(axis=1), face_CK[:, face].mean(axis=1)))
    far = reach(min(clip_CK.shape[1], face_CK.shape[1]))
    ends = np.quantile(drawn, [NormalDist().cdf(end) for end in (-far, far)])
    mean = gap(clip_C, face_CK.mean(axis=1))
    return FrontierGap(mean, float(ends[0]), float(ends[1]), (float(low), float(high)), (count, len(keys[1])))


def _of(scores: "pd.DataFrame", method: str, *, class_noun: str) -> list[CellKey]:
    return [k for k in cell_keys(scores) if k.method == method and not rows_of(scores, k, class_noun=class_noun).empty]


def _table(scores: "pd.DataFrame", keys: Sequence[CellKey], metric: str, *, class_noun: str) -> np.ndarray:
    """Cells by people, of people for whom every cell has the score."""
    rows = [rows_of(scores, key, class_noun=class_noun) for key in keys]
    people = sorted(set.union(*(set(found["identity"]) for found in rows)))
    table_CK = np.stack([person_means(found, metric, among=people) for found in rows])
    return table_CK[:, np.isfinite(table_CK).all(axis=0)]


@dataclass(frozen=True)
class Frontier:
    """The best R-FaceSim of a method at no lower CLIP-T, with a 95% band over people; all [L], cosines."""

    clip_t: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def best_at(clip_SC: np.ndarray, face_SC: np.ndarray, line_SL: np.ndarray) -> np.ndarray:
    """Highest R-FaceSim [S, L] on a polyline through cells among its points whose CLIP-T is at least each of `line_SL`.

    It is at a cell or where the polyline crosses that CLIP-T; -inf where it has no such point.
    """
    line_SL1 = line_SL[:, :, None]
    enough_SLC = clip_SC[:, None] >= line_SL1 - ROUNDING
    best_SL = np.where(enough_SLC, face_SC[:, None], -np.inf).max(axis=2)
    crossed = enough_SLC[:, :, :-1] != enough_SLC[:, :, 1:]
    rise = np.where(crossed, np.diff(clip_SC)[:, None], 1.0)
    share = np.clip((line_SL1 - clip_SC[:, None, :-1]) / rise, 0.0, 1.0)
    there = face_SC[:, None, :-1] + share * np.diff(face_SC)[:, None]
    return np.maximum(best_SL, np.where(crossed, there, -np.inf).max(axis=2, initial=-np.inf))


def frontier(
    scores: "pd.DataFrame",
    keys: Sequence[CellKey],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    class_noun: str = BOTH,
) -> Frontier:
    """The frontier of a method, with a band: each resample of people has a line of its own, between its own ends.

    Args:
        keys: cells of one method by rising iterations, the base first.
    """
    clip_SC, face_SC = _resampled(scores, keys, class_noun=class_noun, resamples=resamples, seed=seed)
    line_SL = np.linspace(clip_SC.min(axis=1), clip_SC.max(axis=1), POINTS, axis=1)
    drawn = best_at(clip_SC, face_SC, line_SL)
    low, high = np.quantile(drawn[1:], [0.025, 0.975], axis=0)
    return Frontier(line_SL[0], drawn[0], low, high)


def frontier_area(
    scores: "pd.DataFrame",
    keys: Sequence[CellKey],
    others: Sequence[CellKey],
    *,
    above: float = -np.inf,
    resamples: int = RESAMPLES,
    seed: int = 0,
    class_noun: str = BOTH,
) -> FrontierGap:
    """Area between two frontiers divided by its width: how much more R-FaceSim at no lower CLIP-T, on average.

    Between the lowest and the highest CLIP-T that both have; resamples draw the same people for both.

    Args:
        keys, others: cells of two methods, as `frontier` takes them.
        above: leave out lower CLIP-T than this.
    """
    clip_SC, face_SC = _resampled(scores, [*keys, *others], class_noun=class_noun, resamples=resamples, seed=seed)
    parts = (slice(len(keys)), slice(len(keys), None))
    low_S = np.maximum(above, np.max([clip_SC[:, part].min(axis=1) for part in parts], axis=0))
    high_S = np.min([clip_SC[:, part].max(axis=1) for part in parts], axis=0)
    line_SL = np.linspace(low_S, np.maximum(low_S, high_S), POINTS, axis=1)
    first, second = (best_at(clip_SC[:, part], face_SC[:, part], line_SL) for part in parts)
    with np.errstate(invalid="ignore"):  # where neither has such a CLIP-T
        gaps = np.trapezoid(first - second, dx=1 / (POINTS - 1), axis=1)
    low, high = np.quantile(gaps[1:], [0.025, 0.975], method="nearest")
    where = (float(low_S[0]), float(high_S[0]))
    return FrontierGap(float(gaps[0]), float(low), float(high), where, (len(keys), len(others)))


def _same_people(scores: "pd.DataFrame", keys: Sequence[CellKey], *, class_noun: str) -> tuple[np.ndarray, np.ndarray]:
    """CLIP-T and R-FaceSim, cells by people, of those who have both in every cell."""
    rows = [rows_of(scores, key, class_noun=class_noun) for key in keys]
    people = sorted(set.union(*(set(found["identity"]) for found in rows)))
    tables = [
        np.stack([person_means(found, name, among=people) for found in rows]) for name in ("clip_t", "r_face_sim")
    ]
    known_K = np.isfinite(np.stack(tables)).all(axis=(0, 1))
    assert known_K.any(), "nobody has CLIP-T and R-FaceSim in every cell"
    return tables[0][:, known_K], tables[1][:, known_K]


def _resampled(
    scores: "pd.DataFrame", keys: Sequence[CellKey], *, class_noun: str, resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """CLIP-T and R-FaceSim of cells: means of everybody, then of each resample of people, [1 + S, C] each."""
    clip_CK, face_CK = _same_people(scores, keys, class_noun=class_noun)
    count = clip_CK.shape[1]
    everybody = np.full((1, count), 1 / count)
    weights_SK = np.concatenate([everybody, resample_weights(count, resamples=resamples, seed=seed)])
    return weights_SK @ clip_CK.T, weights_SK @ face_CK.T
