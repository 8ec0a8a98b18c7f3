"""What the questions are answered with: cells and differences with their intervals, as texts of tables and as claims.

Two cells are compared where they have the same seeds alone: a seed moves a score by as much as an interval is wide.
Legend: K people, S resamples of them.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.shown import Claim, interval, points, told, verdict
from experiments.tradeoff.evidence import curve, from_base, of_cells, of_seed
from experiments.tradeoff.protocol import CHECKPOINTS, SEEDS, TARGET
from metalora.core import metrics
from metalora.core.errors import UserError
from metalora.core.metrics import Interval, PairedDifference, StepsToMatch
from metalora.evaluation import curves
from metalora.evaluation.curves import BOTH, CellKey, person_means, rows_of
from metalora.evaluation.frontier import FrontierGap, frontier_area
from metalora.evaluation.score_table import BASE
from metalora.reporting import look
from metalora.reporting.tables import Table

if TYPE_CHECKING:
    import pandas as pd

EARLY = 375
"""Meta-LoRA's iterations in the paper, at which it is where LoRA + aug is at `TARGET`."""
MANY = 100_000
"""Resamples where an interval's end may be one that few reach: with 10,000 it still moves by ten iterations."""

CELL_METRICS = ("copy_paste", "face_found", "identified", "clip_t")
CELL_HEADER = ("iterations", "R-FaceSim", "FaceSim", "drop", "copy-paste", "faces found", "identified", "CLIP-T")
GAPS = ("r_face_sim", "clip_t", "face_found", "r_face_sim_detected")
GAPS_HEADER = ("R-FaceSim", "CLIP-T", "faces found", "R-FaceSim of faces found")


def compare(scores: "pd.DataFrame", a: CellKey, b: CellKey, *, metric: str) -> PairedDifference:
    """a minus b over people.

    Raises:
        UserError: they are of different seeds.
    """
    return _compare(scores, a, b, names=(metric,))[metric]


def _compare(scores: "pd.DataFrame", a: CellKey, b: CellKey, *, names: Sequence[str]) -> dict[str, PairedDifference]:
    """Several scores of the same two cells, which are looked up once."""
    pair = of_cells(scores, [a, b])
    _same_seeds(pair, [a, b])
    return {metric: curves.compare(pair, a, b, metric=metric) for metric in names}


def _same_seeds(scores: "pd.DataFrame", keys: Sequence[CellKey]) -> None:
    first, *others = [sorted(set(rows_of(scores, key, class_noun=BOTH)["seed"])) for key in keys]
    for key, seeds in zip(keys[1:], others, strict=True):
        if seeds != first:
            raise UserError(
                "cells of different seeds", expected=f"{first} as {keys[0]} has", got=f"{seeds}", key=str(key)
            )


def area(scores: "pd.DataFrame", ours: Sequence[CellKey], others: Sequence[CellKey], **options: Any) -> FrontierGap:
    """Area between the frontiers of two methods' cells; options of `frontier_area`.

    Raises:
        UserError: they are of different seeds.
    """
    _same_seeds(scores, [*ours, *others])
    return frontier_area(scores, ours, others, **options)


def cell_interval(scores: "pd.DataFrame", key: CellKey, metric: str) -> Interval:
    """A cell's mean over people."""
    return metrics.bootstrap(_people(scores, key, metric))


def cell_texts(scores: "pd.DataFrame", key: CellKey) -> tuple[str, ...]:
    """A row below `CELL_HEADER`: every score of a cell with its interval."""
    scores = of_cells(scores, [key])
    face, robust = (cell_interval(scores, key, metric) for metric in ("face_sim", "r_face_sim"))
    rest = [_with_interval(cell_interval(scores, key, metric)) for metric in CELL_METRICS]
    return str(key.iterations), _with_interval(robust), _with_interval(face), _drop(scores, key), *rest


def _drop(scores: "pd.DataFrame", key: CellKey) -> str:
    """R-FaceSim over FaceSim, minus 1 (Table 3): of means over people, as some person's FaceSim is near 0."""
    face, robust = (_people(scores, key, metric) for metric in ("face_sim", "r_face_sim"))
    weights = metrics.resample_weights(len(face))
    resampled = metrics.weighted_means(robust, weights) / metrics.weighted_means(face, weights) - 1
    low, high = 100 * np.percentile(resampled, [2.5, 97.5])
    return f"{100 * metrics.relative_drop(face.mean(), robust.mean()):+.1f}% ({low:+.1f} to {high:+.1f})"


def _people(scores: "pd.DataFrame", key: CellKey, metric: str) -> np.ndarray:
    rows = rows_of(scores, key, class_noun=BOTH)
    return person_means(rows, metric, among=sorted(set(rows["identity"])))


def gap_texts(scores: "pd.DataFrame", a: CellKey, b: CellKey) -> tuple[str, ...]:
    """A row below `GAPS_HEADER`: a minus b."""
    return tuple(gap_text(gap) for gap in _compare(scores, a, b, names=GAPS).values())


def gap_rows(scores: "pd.DataFrame", method: str, other: str, *, rank: int = 1) -> list[tuple[str, ...]]:
    """Iterations and `gap_texts` at every checkpoint of two methods."""
    pairs = zip(curve(scores, method, rank=rank), curve(scores, other, rank=rank), strict=True)
    return [(str(ours.iterations), *gap_texts(scores, ours, theirs)) for ours, theirs in pairs]


def higher(scores: "pd.DataFrame", a: CellKey, b: CellKey, *, metric: str, claim: str) -> Claim:
    """Whether a is above b."""
    found = compare(scores, a, b, metric=metric)
    return Claim(claim, verdict(found), f"by {told(found)}, {found.identities} people")


def parts_of_gap(scores: "pd.DataFrame", a: CellKey, b: CellKey) -> tuple[Interval, Interval]:
    """R-FaceSim of a above b as a sum: by how alike the faces are that are found, and by how many are found.

    With the share found p and the mean of found faces q of either, p q - p' q' is (q - q') times the mean of p and p',
    and (p - p') times the mean of q and q'.
    """
    sums = []
    for key in (a, b):
        rows = rows_of(scores, key, class_noun=BOTH)
        rows = rows[rows["face_found"].notna()]
        found = rows["face_found"] > 0
        table = rows.assign(found=found, score=rows["r_face_sim"].where(found, 0.0), one=1).groupby("identity")
        sums.append(table[["one", "found", "score"]].sum())
    assert sums[0]["one"].equals(sums[1]["one"]), "the same people, as many pictures of each"
    count = len(sums[0])
    weights_SK = np.concatenate([np.full((1, count), 1 / count), metrics.resample_weights(count)])
    (p, q), (p_other, q_other) = (
        (drawn[:, 1] / drawn[:, 0], drawn[:, 2] / drawn[:, 1])
        for drawn in (weights_SK @ one.to_numpy() for one in sums)
    )
    parts = (q - q_other) * (p + p_other) / 2, (p - p_other) * (q + q_other) / 2
    return tuple(Interval(float(x[0]), *map(float, np.percentile(x[1:], [2.5, 97.5]))) for x in parts)  # pyright: ignore


def paired(
    ours: "Sequence[pd.DataFrame]", others: "Sequence[pd.DataFrame]", key: CellKey, metric: str
) -> PairedDifference:
    """One cell in some tables minus the same in others, over people: each one's mean over the tables."""

    def means(tables: "Sequence[pd.DataFrame]", people: list[str]) -> np.ndarray:
        rows = [rows_of(table, key, class_noun=BOTH) for table in tables]
        kept = [found[found["identity"].isin(people)] for found in rows]
        return np.mean([person_means(found, metric, among=people) for found in kept], axis=0)

    every = [rows_of(table, key, class_noun=BOTH) for table in (*ours, *others)]
    assert len({tuple(sorted(set(rows["seed"]))) for rows in every}) == 1, "cells of different seeds"
    people = sorted(set.intersection(*(set(rows["identity"]) for rows in every)))
    return metrics.paired_bootstrap(means(ours, people), means(others, people))


def match(scores: "pd.DataFrame", method: str, other: str, *, resamples: int = MANY) -> StepsToMatch:
    """When a method is where another is at `TARGET` iterations."""
    target = CellKey(other, 1, TARGET)
    _same_seeds(scores, [target, *curve(scores, method)])
    found = curves.steps_to_match(scores, method=method, target=target, resamples=resamples)
    assert found is not None
    return found


def reached(found: StepsToMatch) -> str:
    """The iteration of a match."""
    if found.matched is None:
        return f"not within {max(CHECKPOINTS)}"
    return ("at most " if found.matched == found.first_checkpoint else "") + f"{found.matched:.0f}"


def by_seed(settings: "Mapping[str, pd.DataFrame]", method: str, other: str) -> Table:
    """What one seed alone says: seeds are not resampled, so no interval knows how much they differ."""
    rows = []
    for name, scores in settings.items():
        for seed in SEEDS:
            own = of_seed(scores, seed)
            gap = compare(own, CellKey(method, 1, EARLY), CellKey(other, 1, EARLY), metric="r_face_sim")
            between = area(own, from_base(own, method), from_base(own, other), resamples=1)
            at = reached(match(own, method, other, resamples=1))  # without an interval
            rows.append((name, str(seed), points(gap.mean, sign=True), at, points(between.mean, sign=True)))
    header = (
        "rates",
        "seed",
        f"R-FaceSim at {EARLY}",
        f"iterations for {look.label(other)}'s {TARGET}",
        "area between frontiers",
    )
    return Table(f"{look.label(method)} - {look.label(other)}, each seed alone", header, tuple(rows))


def by_prompt(settings: "Mapping[str, pd.DataFrame]", method: str, other: str) -> Table:
    """The difference for one prompt alone: prompts are not resampled either."""
    rows = []
    for name, scores in settings.items():
        ours, theirs = CellKey(method, 1, EARLY), CellKey(other, 1, EARLY)
        faces = rows_of(scores, ours, class_noun=BOTH).dropna(subset=["face_found"])
        for prompt in sorted(set(faces["prompt_id"])):
            gap = compare(scores[scores["prompt_id"] == prompt], ours, theirs, metric="r_face_sim")
            rows.append((name, prompt, gap_text(gap)))
    title = f"{look.label(method)} - {look.label(other)}, {EARLY} iterations, each prompt alone (not of the protocol)"
    return Table(title, ("rates", "prompt", "R-FaceSim"), tuple(rows))


def below_base(settings: "Mapping[str, pd.DataFrame]", methods: Sequence[str]) -> Table:
    """CLIP-T of the untouched base, and how far a method's last cell is from it: rates were chosen within 3 points."""
    rows = []
    for name, scores in settings.items():
        for which, own in [(f"{seed}", of_seed(scores, seed)) for seed in SEEDS] + [("all", scores)]:
            base = CellKey(BASE, 0, 0)
            gaps = [compare(own, CellKey(method, 1, TARGET), base, metric="clip_t").mean for method in methods]
            clip = points(cell_interval(own, base, "clip_t").mean)
            rows.append((name, which, clip, *(points(gap, sign=True) for gap in gaps)))
    header = ("rates", "seed", "base", *(f"{look.label(method)} - base" for method in methods))
    return Table(f"CLIP-T at {TARGET} iterations and of the untouched base", header, tuple(rows))


def areas(named: "Mapping[str, tuple[pd.DataFrame, int]]", method: str, other: str) -> Table:
    """Areas between two methods' frontiers at a rank, and what they stand on."""
    rows = []
    for name, (scores, rank) in named.items():
        lines = [from_base(scores, one, rank=rank) for one in (method, other)]
        cells = [line[1:] for line in lines]
        whole, between = area(scores, *lines), area(scores, *cells)
        highest = min(max(cell_interval(scores, key, "clip_t").mean for key in line) for line in cells)
        low, high = whole.clip_t
        beyond = area(scores, *lines, above=highest, resamples=1) if highest < high else None
        share = (high - max(low, highest)) / (high - low) if high > low else 0.0
        chord = points(beyond.mean * share, sign=True) if beyond else "0.0"
        rows.append((name, gap_text(whole), f"{points(low)} to {points(high)}", chord, _between(between)))
    header = (
        "which",
        "area from the base",
        "CLIP-T",
        "points of it at higher CLIP-T than both have cells at",
        "where both have cells",
    )
    title = (
        f"Area between the frontiers, {look.label(method)} - {look.label(other)}; the base's CLIP-T is a mean over 12"
        " pictures a seed, which no interval knows"
    )
    return Table(title, header, tuple(rows))


def _between(found: FrontierGap) -> str:
    if found.clip_t[1] <= found.clip_t[0]:
        return "no CLIP-T that both have"
    mean, low, high = (points(value, sign=True) for value in (found.mean, found.low, found.high))
    if np.isfinite([found.low, found.high]).all():
        return gap_text(found)
    bound = f"2.5% of resamples are below {low}" if np.isfinite(found.low) else f"2.5% are above {high}"
    return f"{mean}; {bound}, some share no CLIP-T"


def gap_text(found: PairedDifference | FrontierGap | Interval) -> str:
    """A difference with its interval."""
    return interval(found.mean, found.low, found.high)


def _with_interval(found: Interval) -> str:
    return f"{points(found.mean)} ({points(found.low)} to {points(found.high)})"


def sign(low: float, high: float) -> bool | None:
    """What an interval decides."""
    return True if low > 0 else False if high < 0 else None
