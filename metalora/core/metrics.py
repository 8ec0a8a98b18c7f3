"""The paper's four scores from embeddings, and what is said about them: means, intervals, steps to match.

Scores are cosines in [-1, 1]; the paper prints them times 100.
Shape legend: N images, D embedding width, T test photos, K identities, S bootstrap resamples, C checkpoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

RESAMPLES = 10_000
"""With so many the ends of a mean's interval differ from seed to seed by 1% of its width; a longer tail wants more."""
ROUNDING = 1e-12
"""A curve that misses its target by less than this has met it: the same mean, summed in another order."""


def cosine(a_ND: Tensor, b_TD: Tensor) -> Tensor:
    """Cosine of every row of a with every row of b, [N, T] in float64."""
    a_ND, b_TD = (torch.nn.functional.normalize(x.double(), dim=-1) for x in (a_ND, b_TD))
    return a_ND @ b_TD.T


def paired_cosine(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    """Cosine of each row of a with the same row of b, [N] in float64: CLIP-T, CLIP-I and FaceSim (App. G)."""
    return torch.nn.functional.cosine_similarity(a_ND.double(), b_ND.double(), dim=-1)


def r_face_sim(generated_ND: Tensor, test_photos_TD: Tensor) -> Tensor:
    """S(i, p) of Algorithm 3 for each generated face of one identity, [N] in float64.

    Args:
        generated_ND: embeddings of the generated faces.
        test_photos_TD: embeddings of that person's other photos, the reference not among them, faceless ones left out.
    """
    assert len(test_photos_TD) > 0, "no test photo with a face"
    return cosine(generated_ND, test_photos_TD).mean(dim=1)


def misses_as_zero(scores_N: np.ndarray, found_N: np.ndarray) -> np.ndarray:
    """Face scores with 0 where no face was found: dropping those images would reward failure."""
    return np.where(found_N, scores_N, 0.0)


def identity_means(scores_N: ArrayLike, identities_N: Sequence[str], *, among_K: Sequence[str]) -> np.ndarray:
    """Mean score of each identity over its prompts and seeds, [K] in the order of `among_K`.

    NaN scores (not measured) are left out; an identity without any score is NaN.
    """
    row = {identity: k for k, identity in enumerate(among_K)}
    rows_N = np.array([row[identity] for identity in identities_N], dtype=np.int64)
    scores_N = np.asarray(scores_N, dtype=np.float64)
    known_N = np.isfinite(scores_N)
    sums_K = np.bincount(rows_N[known_N], weights=scores_N[known_N], minlength=len(row))
    counts_K = np.bincount(rows_N[known_N], minlength=len(row))
    return np.divide(sums_K, counts_K, out=np.full(len(row), np.nan), where=counts_K > 0)


@cache
def resample_weights(identities: int, *, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Weights [S, K] of the bootstrap over identities: how often each was drawn, divided by K.

    The same weights applied to two methods make their comparison paired.
    """
    rng = np.random.default_rng([seed, identities])
    weights_SK = rng.multinomial(identities, np.full(identities, 1 / identities), size=resamples) / identities
    weights_SK.flags.writeable = False  # it is shared by every call
    return weights_SK


def weighted_means(means: ArrayLike, weights_SK: np.ndarray) -> np.ndarray:
    """Mean over identities under each resample: [..., K] to [S, ...]; NaN identities are left out."""
    means = np.asarray(means, dtype=np.float64)
    known = np.isfinite(means)
    total = np.tensordot(weights_SK, np.where(known, means, 0.0), axes=(1, means.ndim - 1))
    weight = np.tensordot(weights_SK, known.astype(np.float64), axes=(1, means.ndim - 1))
    return np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)


@dataclass(frozen=True)
class Interval:
    """A mean over identities and its 95% bootstrap interval; NaN when nothing was measured."""

    mean: float
    low: float
    high: float


def bootstrap(means_K: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean over identities with the 95% percentile interval of resampling them."""
    known_K = means_K[np.isfinite(means_K)]
    if known_K.size == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    resampled_S = weighted_means(known_K, resample_weights(known_K.size, resamples=resamples, seed=seed))
    low, high = np.percentile(resampled_S, [2.5, 97.5])
    return Interval(float(known_K.mean()), float(low), float(high))


@dataclass(frozen=True)
class PairedDifference:
    """Mean of a - b over the identities that both have, its 95% interval, and the share of resamples with a above b.

    `p` is that of `sign_flip_p`: percentile intervals of a few people are too narrow to be asked alone.
    """

    mean: float
    low: float
    high: float
    share_above: float
    identities: int
    p: float


def paired_bootstrap(
    a_K: np.ndarray, b_K: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> PairedDifference:
    """Compare two methods on the same identities: each resample draws people, not scores."""
    difference_K = a_K - b_K
    difference_K = difference_K[np.isfinite(difference_K)]
    interval = bootstrap(difference_K, resamples=resamples, seed=seed)
    if difference_K.size == 0:
        return PairedDifference(interval.mean, interval.low, interval.high, float("nan"), 0, float("nan"))
    weights_SK = resample_weights(difference_K.size, resamples=resamples, seed=seed)
    above = float((weighted_means(difference_K, weights_SK) > 0).mean())
    p = sign_flip_p(difference_K, seed=seed)
    return PairedDifference(interval.mean, interval.low, interval.high, above, difference_K.size, p)


def reach(count: int) -> float:
    """How far 95% go on the normal scale: as a t interval's, for few people (Hesterberg 2015)."""
    freedom, z = count - 1, NormalDist().inv_cdf(0.975)
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)  # Cornish and Fisher
    return t * (count / freedom) ** 0.5


EXACT_UP_TO, FLIPS = 14, 20000


def sign_flip_p(difference_K: np.ndarray, *, seed: int = 0) -> float:
    """Two-sided p of a paired permutation test over identities: how often signs drawn at random give a mean at least
    as far from 0. Every pattern of signs is tried for up to 14 identities, 20,000 random ones beyond.

    Args:
        difference_K: one method minus the other for each identity, finite.
    """
    count = difference_K.size
    if count == 0:
        return float("nan")
    seen = abs(difference_K.sum()) * (1 - 1e-12)  # the pattern that was seen must count, whatever order sums it
    if count <= EXACT_UP_TO:
        signs_SK = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
        return float((np.abs(signs_SK @ difference_K) >= seen).mean())
    signs_SK = np.random.default_rng([seed, count]).choice(np.array([-1, 1], dtype=np.int8), size=(FLIPS, count))
    return float((1 + (np.abs(signs_SK @ difference_K) >= seen).sum()) / (1 + FLIPS))


def first_reach(iterations_C: np.ndarray, *conditions: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """First iteration at which every curve is at least its target, linear between checkpoints, [S]; inf if never.

    Args:
        iterations_C: the checkpoints, ascending.
        conditions: pairs of curves [S, C] and targets [S].
    """
    if len(iterations_C) == 1:  # one checkpoint is a segment of no length
        iterations_C = np.repeat(iterations_C, 2)
        conditions = tuple((np.repeat(curves_SC, 2, axis=1), target_S) for curves_SC, target_S in conditions)
    samples = conditions[0][0].shape[0]
    low = np.zeros((samples, len(iterations_C) - 1))
    high = np.ones_like(low)
    for curves_SC, target_S in conditions:
        start, rise = curves_SC[:, :-1], np.diff(curves_SC, axis=1)
        gap = target_S[:, None] - ROUNDING - start
        with np.errstate(divide="ignore", invalid="ignore"):
            where = gap / rise
        low = np.maximum(low, np.where(rise > 0, where, np.where((rise < 0) | (gap <= 0), 0.0, np.inf)))
        high = np.minimum(high, np.where(rise < 0, where, 1.0))
    reached = low <= high
    place = iterations_C[:-1] + np.where(reached, low, 0.0) * np.diff(iterations_C)
    return np.where(reached, place, np.inf).min(axis=1)


@dataclass(frozen=True)
class StepsToMatch:
    """How many iterations a method needs for another one's R-FaceSim.

    `plain` asks for the R-FaceSim alone, `matched` for the same at no lower CLIP-T; None: not within the checkpoints.
    An iteration equal to the first checkpoint is an upper bound: nothing was measured before it.
    Intervals are 95% over identities, with inf where a resample never gets there; `matched_share` is the share that do.
    """

    target_iterations: int
    target_r_face_sim: float
    target_clip_t: float
    first_checkpoint: int
    plain: float | None
    plain_interval: tuple[float, float]
    clip_t_at_plain: float | None
    matched: float | None
    matched_interval: tuple[float, float]
    matched_share: float

    @property
    def no_lower_clip_t(self) -> bool | None:
        """Whether CLIP-T is no lower at the plain crossing; None when there is no crossing."""
        return None if self.plain is None else self.matched == self.plain

    @property
    def ratio(self) -> float | None:
        """How many times fewer iterations, at no lower CLIP-T."""
        return None if self.matched is None else self.target_iterations / self.matched

    @property
    def plain_ratio(self) -> float | None:
        """How many times fewer iterations for the R-FaceSim alone."""
        return None if self.plain is None else self.target_iterations / self.plain


def steps_to_match(
    iterations_C: Sequence[int],
    *,
    r_face_sim_CK: np.ndarray,
    clip_t_CK: np.ndarray,
    target_r_face_sim_K: np.ndarray,
    target_clip_t_K: np.ndarray,
    target_iterations: int,
    same_people: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> StepsToMatch:
    """Iterations at which a curve first reaches a target cell's R-FaceSim, plainly and at no lower CLIP-T.

    Mostly the two scores come from different people (R-FaceSim from those with several photos, CLIP-T from the others),
    so their K differ and they are resampled apart; within a score, curve and target are resampled together.

    Args:
        iterations_C: the curve's checkpoints, ascending.
        r_face_sim_CK: the curve's R-FaceSim per checkpoint and identity.
        clip_t_CK: the curve's CLIP-T per checkpoint and identity.
        target_r_face_sim_K: the target cell's R-FaceSim of the same identities.
        target_clip_t_K: the target cell's CLIP-T of the same identities.
        target_iterations: the target cell's iterations, for the ratio.
        same_people: both scores are of the same people in the same order, who are resampled once.
    """
    checkpoints_C = np.asarray(iterations_C, dtype=np.float64)

    def resampled(curve_CK: np.ndarray, target_K: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        everybody = np.full((1, target_K.size), 1 / target_K.size)
        weights_SK = np.concatenate([everybody, resample_weights(target_K.size, resamples=resamples, seed=seed)])
        return weighted_means(curve_CK, weights_SK), weighted_means(target_K, weights_SK)

    face = resampled(r_face_sim_CK, target_r_face_sim_K, seed)
    clip = resampled(clip_t_CK, target_clip_t_K, seed + (not same_people))
    plain_S, matched_S = first_reach(checkpoints_C, face), first_reach(checkpoints_C, face, clip)

    def interval(reach_S: np.ndarray) -> tuple[float, float]:
        low, high = np.percentile(reach_S[1:], [2.5, 97.5], method="nearest")  # interpolating with inf gives NaN
        return float(low), float(high)

    plain, matched = (float(x[0]) if np.isfinite(x[0]) else None for x in (plain_S, matched_S))
    return StepsToMatch(
        target_iterations=target_iterations,
        target_r_face_sim=float(face[1][0]),
        target_clip_t=float(clip[1][0]),
        first_checkpoint=int(checkpoints_C[0]),
        plain=plain,
        plain_interval=interval(plain_S),
        clip_t_at_plain=None if plain is None else float(np.interp(plain, checkpoints_C, clip[0][0])),
        matched=matched,
        matched_interval=interval(matched_S),
        matched_share=float(np.isfinite(matched_S[1:]).mean()),
    )


def trend(clip_t: ArrayLike, r_face_sim: ArrayLike, *, degree: int = 2) -> np.polynomial.Polynomial:
    """Least-squares polynomial of R-FaceSim over CLIP-T (Fig. 3, 5); fewer points lower the degree."""
    clip_t, r_face_sim = np.asarray(clip_t, dtype=np.float64), np.asarray(r_face_sim, dtype=np.float64)
    degree = min(degree, len(np.unique(clip_t)) - 1)
    if degree <= 0:
        return np.polynomial.Polynomial([r_face_sim.mean()])
    return np.polynomial.Polynomial.fit(clip_t, r_face_sim, degree)


def relative_drop(face_sim: float, r_face_sim: float) -> float:
    """How much of FaceSim was pose copying: (R-FaceSim - FaceSim) / FaceSim (Table 3), as a fraction."""
    return (r_face_sim - face_sim) / face_sim if face_sim else float("nan")
