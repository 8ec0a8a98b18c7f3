"""How far one method's fitted trade-off lies above another's (Fig. 3 and 5), with an interval over people."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from metalora.core.metrics import reach, trend
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
