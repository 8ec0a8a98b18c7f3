"""The study's six questions: for each a figure, a table and an answer with its interval.

A question whose runs are not all there is left out and said so. Legend: K people.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.shown import Claim, Shown, interval, points, told, verdict
from experiments.tradeoff import draw
from experiments.tradeoff.evidence import RANDOM, SPECTRUM, Evidence, curve, from_base
from experiments.tradeoff.protocol import SEEDS, SLOW, TARGET
from metalora.core import metrics
from metalora.core.metrics import PairedDifference
from metalora.evaluation.curves import BOTH, CellKey, compare, person_means, rows_of, steps_to_match
from metalora.evaluation.frontier import FrontierGap, frontier_area
from metalora.evaluation.score_table import PHOTO_METHODS
from metalora.reporting import look
from metalora.reporting.tables import Table

if TYPE_CHECKING:
    import pandas as pd

EARLY = 375
"""Meta-LoRA's iterations in the paper, at which it is where LoRA + aug is at `TARGET`."""


@dataclass(frozen=True)
class Question:
    """What is asked, the beginnings of the names of the runs it stands on, and who answers."""

    letter: str
    text: str
    runs: tuple[str, ...]
    answer: Callable[[Evidence, Path], Shown]


def meta_against_aug(evidence: Evidence, out: Path) -> Shown:
    """(a) at the common rate, at a slow one, and each method at its own, where these have been run."""
    common, own = evidence.rates["lora_aug"], evidence.rates["meta_lora"]
    settings = {f"both at {common:g}": evidence.common}
    if evidence.has("slow-"):
        settings[f"both at {SLOW:g}"] = evidence.slow
    shared = tuple(settings)
    if own != common and evidence.has_own("lora_aug", "meta_lora"):
        settings[f"LoRA+aug at {common:g}, Meta-LoRA at {own:g}"] = evidence.own("lora_aug", "meta_lora")
    rows, claims, areas = [], [], {}
    for name, scores in settings.items():
        ours, other = CellKey("meta_lora", 1, EARLY), CellKey("lora_aug", 1, EARLY)
        found = {m: compare(scores, ours, other, metric=m) for m in ("r_face_sim", "clip_t")}
        text = f"Meta-LoRA's R-FaceSim at {EARLY} iterations is higher than LoRA+aug's ({name})"
        claims.append(
            Claim(
                text,
                verdict(found["r_face_sim"]),
                f"by {told(found['r_face_sim'])}, CLIP-T by {told(found['clip_t'])}",
            )
        )
        claims.append(_sooner(scores, name))
        areas[name] = area = frontier_area(scores, from_base(scores, "meta_lora"), from_base(scores, "lora_aug"))
        text = f"Meta-LoRA's frontier lies above LoRA+aug's ({name})"
        claims.append(Claim(text, _sign(area.low, area.high), f"by {_gap(area)} points of R-FaceSim"))
        rows += [(name, *row) for row in _gaps(scores, rank=1)]
    table = Table("Meta-LoRA against LoRA+aug, rank 1", ("rates", *GAPS_HEADER), tuple(rows))
    seeds = _by_seed(settings, "meta_lora", "lora_aug")
    stand_on = _areas(settings, areas, "meta_lora", "lora_aug")
    drawn = {name: settings[name] for name in shared}
    picture = draw.against(drawn, ("lora_aug", "meta_lora"), out, "a_meta_against_aug")
    return Shown((table, seeds, stand_on), (picture,), tuple(claims))


GAPS = ("r_face_sim", "clip_t", "face_found", "r_face_sim_detected")
GAPS_HEADER = (
    "iterations",
    "R-FaceSim: Meta-LoRA - LoRA+aug",
    "CLIP-T",
    "faces found",
    "R-FaceSim of faces found",
)


def _gaps(scores: "pd.DataFrame", *, rank: int) -> list[tuple[str, ...]]:
    """Meta-LoRA against LoRA+aug at every checkpoint that both have."""
    cells = zip(_maybe(scores, "meta_lora", rank), _maybe(scores, "lora_aug", rank), strict=True)
    return [
        (str(ours.iterations), *(_gap(compare(scores, ours, theirs, metric=metric)) for metric in GAPS))
        for ours, theirs in cells
    ]


def _by_seed(settings: "Mapping[str, pd.DataFrame]", method: str, other: str) -> Table:
    """What one seed alone says: seeds are not resampled, so no interval knows how much they differ."""
    rows = []
    for name, scores in settings.items():
        for seed in SEEDS:
            own = scores[scores["seed"].eq(seed) | scores["method"].isin(PHOTO_METHODS)]
            gap = compare(own, CellKey(method, 1, EARLY), CellKey(other, 1, EARLY), metric="r_face_sim")
            match = steps_to_match(own, method=method, target=CellKey(other, 1, TARGET))
            area = frontier_area(own, from_base(own, method), from_base(own, other))
            at = f"not within {TARGET}"
            if match is not None and match.matched is not None:
                at = ("at most " if match.matched == match.first_checkpoint else "") + f"{match.matched:.0f}"
            rows.append((name, str(seed), points(gap.mean, sign=True), at, points(area.mean, sign=True)))
    header = (
        "rates",
        "seed",
        f"R-FaceSim at {EARLY}",
        f"is {look.label(other)}'s {TARGET} at",
        "area between frontiers",
    )
    return Table(f"{look.label(method)} - {look.label(other)}, each seed alone", header, tuple(rows))


def _areas(settings: "Mapping[str, pd.DataFrame]", areas: Mapping[str, FrontierGap], method: str, other: str) -> Table:
    """Areas with what they stand on: from the untouched base, and between cells that were measured."""
    rows = []
    for name, scores in settings.items():
        area = areas[name]
        highest = max(_interval(scores, key, "clip_t").mean for key in curve(scores, other))
        low, high = area.clip_t
        share = (high - max(low, min(high, highest))) / (high - low) if high > low else 0.0
        cells = frontier_area(scores, curve(scores, method), curve(scores, other))
        if cells.clip_t[1] <= cells.clip_t[0]:
            measured = "no CLIP-T that both have"
        elif np.isfinite(cells.high):
            measured = _gap(cells)
        else:  # in some resamples there is none that both have
            measured = f"{points(cells.mean, sign=True)} ({points(cells.low, sign=True)} and more)"
        where = f"{points(low)} to {points(high)}"
        rows.append((name, _gap(area), where, f"{100 * share:.0f}%", measured))
    said = f"of it between the base and {look.label(other)}'s first cell"
    header = ("rates", "area from the base", "CLIP-T", said, "between cells alone")
    title = (
        f"Area between the frontiers, {look.label(method)} - {look.label(other)}; the base's CLIP-T is a mean over 12"
        " pictures a seed, which the interval does not know"
    )
    return Table(title, header, tuple(rows))


def _sooner(scores: "pd.DataFrame", setting: str) -> Claim:
    """Whether the paper's 1.67 times fewer iterations shows."""
    claim = f"Meta-LoRA needs {TARGET / EARLY:.2f} times fewer iterations than LoRA+aug's {TARGET} ({setting})"
    found = steps_to_match(scores, method="meta_lora", target=CellKey("lora_aug", 1, TARGET))
    assert found is not None
    low, high = (_times(TARGET, n) for n in reversed(found.matched_interval))
    first = "at most " if found.matched == found.first_checkpoint else ""
    at = f"{first}{found.matched:.0f} iterations" if found.matched else f"not within {TARGET} iterations"
    ratio = f"{found.ratio:.2f}" if found.ratio else "not"
    text = f"its R-FaceSim at no lower CLIP-T is reached at {at}: {ratio} times fewer (95%: {low} to {high});"
    alone = f"{found.plain_ratio:.2f}" if found.plain_ratio else "not reached"
    text += f" R-FaceSim alone {alone}"
    slowest, soonest = found.matched_interval[1], found.matched_interval[0]
    holds = True if slowest <= EARLY else False if soonest > EARLY else None
    return Claim(claim, holds, text)


def _times(target: int, iterations: float) -> str:
    return f"{target / iterations:.2f}" if np.isfinite(iterations) else "never"


def aug_against_lora(evidence: Evidence, out: Path) -> Shown:
    """(b) crops against the whole photo, and why."""
    scores = evidence.common
    pair = CellKey("lora_aug", 1, TARGET), CellKey("lora", 1, TARGET)
    settings = {"common rate": scores}
    if evidence.rates["lora"] != evidence.rates["lora_aug"] and evidence.has_own("lora", "lora_aug"):
        settings["each at its own rate"] = evidence.own("lora", "lora_aug")
    claims, rows = [], []
    for name, table in settings.items():
        claims += [
            _higher(table, *pair, metric="r_face_sim", claim=f"LoRA+aug has the higher R-FaceSim ({name})"),
            _higher(table, *pair, metric="clip_t", claim=f"LoRA+aug has the higher CLIP-T ({name})"),
            _higher(table, *pair, metric="face_found", claim=f"in LoRA's pictures fewer faces are found ({name})"),
            _higher(
                table,
                *pair,
                metric="r_face_sim_detected",
                claim=f"LoRA+aug has the higher R-FaceSim where a face is found ({name}; not of the protocol)",
            ),
            _higher(
                table,
                *reversed(pair),
                metric="copy_paste",
                claim=f"LoRA copies its photo more: the copy-paste score of faces found is higher ({name})",
            ),
        ]
        rows += [
            (name, look.label(method), *_cell_texts(table, key))
            for method in ("lora", "lora_aug")
            for key in curve(table, method)
        ]
    title = f"LoRA on the whole photo and on its crops, rank 1; the answers are of {TARGET} iterations"
    shown = Table(title, ("rates", "method", *CELL_HEADER), tuple(rows))
    picture = draw.against(settings, ("lora", "lora_aug"), out, "b_aug_against_lora")
    return Shown((shown,), (picture,), tuple(claims))


def ranks(evidence: Evidence, out: Path) -> Shown:
    """(c) whether a higher rank overfits."""
    scores, claims, rows = evidence.common, [], []
    for method in ("lora_aug", "meta_lora"):
        high, low = CellKey(method, 16, TARGET), CellKey(method, 1, TARGET)
        clip = compare(scores, low, high, metric="clip_t")
        face = compare(scores, high, low, metric="r_face_sim")
        claims.append(
            Claim(
                f"a higher rank overfits ({look.label(method)}, rank 16 against 1, {TARGET} iterations): CLIP-T falls",
                verdict(clip),
                f"by {told(clip)}, while R-FaceSim changes by {told(face)}",
            )
        )
    kept = compare(scores, CellKey("meta_lora", 16, TARGET), CellKey("lora_aug", 16, TARGET), metric="clip_t")
    claims.append(Claim("at rank 16 Meta-LoRA keeps more CLIP-T than LoRA+aug", verdict(kept), f"by {told(kept)}"))
    for method in ("lora_aug", "meta_lora"):
        for rank in (1, 4, 16):
            rows += [(look.label(method), str(rank), *_cell_texts(scores, key)) for key in _maybe(scores, method, rank)]
    table = Table("Ranks, common rate (rank 4: one seed)", ("method", "rank", *CELL_HEADER), tuple(rows))
    gaps = [(str(rank), *row) for rank in (1, 4, 16) for row in _gaps(scores, rank=rank)]
    against = Table("Meta-LoRA against LoRA+aug, common rate (rank 4: one seed)", ("rank", *GAPS_HEADER), tuple(gaps))
    return Shown((table, against), (draw.over_ranks(scores, out, "c_ranks", iterations=TARGET),), tuple(claims))


def random_down(evidence: Evidence, out: Path) -> Shown:
    """(d) Meta-Downs of the same norms that have learned nothing."""
    scores, claims, rows = evidence.common, [], []
    for n in (250, EARLY, TARGET):
        text = f"a learned Meta-Down is better than a random one of the same norm at {n} iterations"
        claims.append(
            _higher(scores, CellKey("meta_lora", 1, n), CellKey(RANDOM, 1, n), metric="r_face_sim", claim=text)
        )
    area = frontier_area(scores, from_base(scores, "meta_lora"), from_base(scores, RANDOM))
    text = "the learned Meta-Down's frontier lies above the random one's"
    claims.append(Claim(text, _sign(area.low, area.high), f"by {_gap(area)} points of R-FaceSim"))
    methods = ["lora_aug", "meta_lora", RANDOM]
    if evidence.has("spectrum-"):
        methods.append(SPECTRUM)
        for n in (250, EARLY, TARGET):
            text = f"... and than one of the same singular values in random directions, at {n} (not of the protocol)"
            pair = CellKey("meta_lora", 1, n), CellKey(SPECTRUM, 1, n)
            claims.append(_higher(scores, *pair, metric="r_face_sim", claim=text))
    for method in methods:
        rows += [(look.label(method), *_cell_texts(scores, key)) for key in curve(scores, method)]
    table = Table("What Stage 1 learned, rank 1, common rate", ("method", *CELL_HEADER), tuple(rows))
    beside = frontier_area(scores, from_base(scores, RANDOM), from_base(scores, "lora_aug"))
    gaps = (("learned - random", _gap(area)), ("random - LoRA+aug (not of the protocol)", _gap(beside)))
    areas = Table("Area between frontiers", ("which", "R-FaceSim"), gaps)
    seeds = _by_seed({"common rate": scores}, "meta_lora", RANDOM)
    picture = draw.against({"common rate": scores}, methods, out, "d_random")
    return Shown((table, areas, seeds), (picture,), tuple(claims))


def widths(evidence: Evidence, out: Path) -> Shown:
    """(e) r1 over the length of Stage 1."""
    tables = evidence.widths()
    sizes, lengths = (sorted({key[n] for key in tables}) for n in (0, 1))
    key = CellKey("meta_lora", 1, EARLY)
    rows = []
    for size in sizes:
        for length in lengths:
            cells = [CellKey("meta_lora", 1, n) for n in (250, EARLY)]
            texts = [f"{_mean(tables[size, length], c, m)}" for c in cells for m in ("r_face_sim", "clip_t")]
            rows.append((str(size), str(length), *texts))
    claims = []
    for size in sizes:
        if size != 32:
            gap = _paired([tables[32, n] for n in lengths], [tables[size, n] for n in lengths], key, "r_face_sim")
            text = f"r1 32 is better than r1 {size} (R-FaceSim at {EARLY} iterations, mean of all lengths of Stage 1)"
            claims.append(Claim(text, verdict(gap), f"by {told(gap)}"))
    longest, shortest = ([tables[size, n] for size in sizes] for n in (lengths[-1], lengths[0]))
    gap = _paired(longest, shortest, key, "r_face_sim")
    text = f"a longer Stage 1 is better ({lengths[-1]} against {lengths[0]} iterations, mean of all r1)"
    claims.append(Claim(text, verdict(gap), f"by {told(gap)}"))
    header = ("r1", "Stage 1", "R-FaceSim at 250", "CLIP-T", f"at {EARLY}", "CLIP-T")
    title = "Width of Meta-Down and length of Stage 1, women, two seeds; 250, 500, 1,000 iterations hold 120, 260, 600"
    table = Table(f"{title} that train Meta-Down, on 20, 60, 100 people", header, tuple(rows))
    return Shown((table,), (draw.over_widths(tables, out, "e_widths", key=key),), tuple(claims))


def stage1_people(evidence: Evidence, out: Path) -> Shown:
    """(f) how many people Stage 1 sees in the same number of iterations."""
    tables = {count: evidence.people(count) for count in (50, 100, 200)}
    rows = [
        (str(count), *_cell_texts(table, CellKey("meta_lora", 1, n)))
        for count, table in tables.items()
        for n in (250, EARLY, TARGET)
    ]
    claims = []
    for more, fewer, later in ((100, 50, ""), (200, 100, ""), (200, 50, "; asked after the others were seen")):
        for n in (250, EARLY):
            gap = _paired([tables[more]], [tables[fewer]], CellKey("meta_lora", 1, n), "r_face_sim")
            text = f"{more} people in Stage 1 are better than {fewer} (R-FaceSim at {n} iterations{later})"
            claims.append(Claim(text, verdict(gap), f"by {told(gap)}"))
    title = "People in Stage 1, rank 1, common rate; 50, 100, 200 are 10, 20, 40 at a time, each with 20, 10, 5 uses"
    table = Table(f"{title} of an image", ("people", *CELL_HEADER), tuple(rows))
    return Shown((table,), (draw.over_people(tables, out, "f_people"),), tuple(claims))


QUESTIONS = (
    Question("a", "Meta-LoRA against LoRA+aug", ("rate-", "rank01-"), meta_against_aug),
    Question("b", "LoRA+aug against LoRA", ("rate-", "rank01-"), aug_against_lora),
    Question("c", "does a higher rank overfit", ("rate-", "rank01-", "rank16-"), ranks),
    Question("d", "a random Meta-Down of the same norm", ("rate-", "rank01-", "random-"), random_down),
    Question("e", "r1 over the length of Stage 1", ("rate-", "r1-"), widths),
    Question("f", "people in Stage 1", ("rate-", "rank01-", "people"), stage1_people),
)

CELL_HEADER = ("iterations", "R-FaceSim", "FaceSim", "drop", "copy-paste", "faces found", "identified", "CLIP-T")


def _cell_texts(scores: "pd.DataFrame", key: CellKey) -> tuple[str, ...]:
    face, robust = (_interval(scores, key, m) for m in ("face_sim", "r_face_sim"))
    drop = metrics.relative_drop(face.mean, robust.mean)
    texts = [_mean(scores, key, m) for m in ("copy_paste", "face_found", "identified", "clip_t")]
    return str(key.iterations), _with_interval(robust), points(face.mean), f"{100 * drop:+.1f}%", *texts


def _interval(scores: "pd.DataFrame", key: CellKey, metric: str) -> metrics.Interval:
    rows = rows_of(scores, key, class_noun=BOTH)
    return metrics.bootstrap(person_means(rows, metric, among=sorted(set(rows["identity"]))))


def _mean(scores: "pd.DataFrame", key: CellKey, metric: str) -> str:
    return points(_interval(scores, key, metric).mean)


def _with_interval(found: metrics.Interval) -> str:
    return f"{points(found.mean)} ({points(found.low)} to {points(found.high)})"


def _higher(scores: "pd.DataFrame", a: CellKey, b: CellKey, *, metric: str, claim: str) -> Claim:
    found = compare(scores, a, b, metric=metric)
    return Claim(claim, verdict(found), f"by {told(found)}, {found.identities} people")


def _paired(
    ours: "Sequence[pd.DataFrame]", others: "Sequence[pd.DataFrame]", key: CellKey, metric: str
) -> PairedDifference:
    """Paired over people, each one's mean over several tables."""

    def means(tables: "Sequence[pd.DataFrame]", people: list[str]) -> np.ndarray:
        rows = [rows_of(table, key, class_noun=BOTH) for table in tables]
        kept = [found[found["identity"].isin(people)] for found in rows]
        return np.mean([person_means(found, metric, among=people) for found in kept], axis=0)

    every = [set(rows_of(table, key, class_noun=BOTH)["identity"]) for table in (*ours, *others)]
    people = sorted(set.intersection(*every))
    return metrics.paired_bootstrap(means(ours, people), means(others, people))


def _maybe(scores: "pd.DataFrame", method: str, rank: int) -> list[CellKey]:
    there = {(m, r) for m, r in scores[["method", "rank"]].drop_duplicates().itertuples(index=False)}
    return curve(scores, method, rank=rank) if (method, rank) in there else []


def _gap(found: PairedDifference | FrontierGap) -> str:
    return interval(found.mean, found.low, found.high)


def _sign(low: float, high: float) -> bool | None:
    return True if low > 0 else False if high < 0 else None
