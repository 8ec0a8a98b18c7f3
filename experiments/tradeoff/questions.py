"""The study's six questions: for each a figure, a table and an answer with its interval.

A question whose runs are not all there is left out and said so.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.shown import Claim, Shown, points, told, verdict
from experiments.tradeoff import draw, measures
from experiments.tradeoff.evidence import RANDOM, SPECTRUM, Evidence, curve, from_base, of_seed
from experiments.tradeoff.measures import CELL_HEADER, EARLY, GAPS, GAPS_HEADER, cell_texts, gap_rows, gap_text
from experiments.tradeoff.protocol import SEEDS, SLOW, TARGET
from metalora.evaluation.curves import CellKey
from metalora.reporting import look
from metalora.reporting.tables import Table

if TYPE_CHECKING:
    import pandas as pd


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
    if own != common and evidence.has_own("lora_aug", "meta_lora"):
        settings[f"LoRA+aug at {common:g}, Meta-LoRA at {own:g}"] = evidence.own("lora_aug", "meta_lora")
    rows, claims = [], []
    for name, scores in settings.items():
        ours, other = CellKey("meta_lora", 1, EARLY), CellKey("lora_aug", 1, EARLY)
        face, clip = (measures.compare(scores, ours, other, metric=m) for m in ("r_face_sim", "clip_t"))
        text = f"Meta-LoRA's R-FaceSim at {EARLY} iterations is higher than LoRA+aug's ({name})"
        claims.append(Claim(text, verdict(face), f"by {told(face)}, CLIP-T by {told(clip)}"))
        claims.append(_sooner(scores, name))
        claims.append(_above(scores, "meta_lora", "lora_aug", f"Meta-LoRA's frontier lies above LoRA+aug's ({name})"))
        rows += [(name, *row) for row in gap_rows(scores, "meta_lora", "lora_aug")]
    table = Table("Meta-LoRA - LoRA+aug, rank 1", ("rates", "iterations", *GAPS_HEADER), tuple(rows))
    seeds = measures.by_seed(settings, "meta_lora", "lora_aug")
    areas = measures.areas({name: (scores, 1) for name, scores in settings.items()}, "meta_lora", "lora_aug")
    prompts = measures.by_prompt(settings, "meta_lora", "lora_aug")
    base = measures.below_base(settings, ("lora_aug", "meta_lora"))
    each = [
        (name, look.label(method), *cell_texts(scores, key))
        for name, scores in settings.items()
        for method in ("lora_aug", "meta_lora")
        for key in curve(scores, method)
    ]
    cells = Table("The same, by cell", ("rates", "method", *CELL_HEADER), tuple(each))
    picture = draw.against(settings, ("lora_aug", "meta_lora"), out, "a_meta_against_aug")
    return Shown((table, seeds, prompts, base, areas, cells), (picture,), tuple(claims))


def _above(scores: "pd.DataFrame", method: str, other: str, claim: str) -> Claim:
    """Whether a frontier, from the untouched base, lies above another."""
    area = measures.area(scores, from_base(scores, method), from_base(scores, other))
    return Claim(claim, measures.sign(area.low, area.high), f"by {gap_text(area)} points of R-FaceSim")


def _sooner(scores: "pd.DataFrame", setting: str) -> Claim:
    """Whether the paper's 1.67 times fewer iterations shows."""
    claim = f"Meta-LoRA needs {TARGET / EARLY:.2f} times fewer iterations than LoRA+aug's {TARGET} ({setting})"
    found = measures.match(scores, "meta_lora", "lora_aug")
    soonest, slowest = found.matched_interval
    ends = [f"{n:.0f}" if np.isfinite(n) else "never" for n in (soonest, slowest)]
    text = f"iterations until its R-FaceSim is there at no lower CLIP-T: {measures.reached(found)}"
    text += f" (95%: {ends[0]} to {ends[1]})"
    if found.ratio:
        bound = "or more " if found.matched == found.first_checkpoint else ""
        times = [f"{TARGET / n:.2f}" if np.isfinite(n) else "never" for n in (slowest, soonest)]
        text += f", {found.ratio:.2f} {bound}times fewer ({times[0]} to {times[1]})"
    alone = f"{found.plain_ratio:.2f}" if found.plain_ratio else "not reached"
    holds = True if slowest <= EARLY else False if soonest > EARLY else None
    return Claim(claim, holds, f"{text}; for R-FaceSim alone {alone}")


def aug_against_lora(evidence: Evidence, out: Path) -> Shown:
    """(b) crops against the whole photo, and why."""
    scores = evidence.common
    ours, other = CellKey("lora_aug", 1, TARGET), CellKey("lora", 1, TARGET)
    settings = {"common rate": scores}
    if evidence.rates["lora"] != evidence.rates["lora_aug"] and evidence.has_own("lora", "lora_aug"):
        settings["each at its own rate"] = evidence.own("lora", "lora_aug")
    claims, rows, why = [], [], []
    for name, table in settings.items():
        asked = (
            (f"LoRA+aug has the higher R-FaceSim ({name})", "r_face_sim", (ours, other)),
            (f"LoRA+aug has the higher CLIP-T ({name})", "clip_t", (ours, other)),
            (f"in LoRA's pictures fewer faces are found ({name})", "face_found", (ours, other)),
            (
                f"LoRA copies its photo more: the copy-paste score of faces found is higher ({name})",
                "copy_paste",
                (other, ours),
            ),
        )
        claims += [measures.higher(table, *pair, metric=metric, claim=claim) for claim, metric, pair in asked]
        parts = measures.parts_of_gap(table, ours, other)
        why.append((name, *(gap_text(part) for part in parts)))
        rows += [
            (name, look.label(method), *cell_texts(table, key))
            for method in ("lora", "lora_aug")
            for key in curve(table, method)
        ]
    title = f"LoRA on the whole photo and on its crops, rank 1; the answers are of {TARGET} iterations"
    cells = Table(title, ("rates", "method", *CELL_HEADER), tuple(rows))
    title = "LoRA+aug - LoRA in R-FaceSim as a sum (not of the protocol)"
    parts = Table(title, ("rates", "faces that are found are more alike", "more faces are found"), tuple(why))
    picture = draw.against(settings, ("lora", "lora_aug"), out, "b_aug_against_lora")
    return Shown((parts, cells), (picture,), tuple(claims))


def ranks(evidence: Evidence, out: Path) -> Shown:
    """(c) whether a higher rank overfits. Rank 4 has one seed, and is shown beside that seed of the others alone."""
    scores, claims, rows = evidence.common, [], []
    seed = of_seed(scores, SEEDS[0])
    for method in ("lora_aug", "meta_lora"):
        high, low = CellKey(method, 16, TARGET), CellKey(method, 1, TARGET)
        clip, face, copied = (
            measures.compare(scores, high, low, metric=metric) for metric in ("clip_t", "r_face_sim", "copy_paste")
        )
        falls = None if (risen := verdict(clip)) is None else not risen
        claim = f"a higher rank overfits ({look.label(method)}, rank 16 against 1, {TARGET} iterations): CLIP-T falls"
        text = f"it changes by {told(clip)}, R-FaceSim by {told(face)}, the copy-paste score by {told(copied)}"
        claims.append(Claim(claim, falls, text))
    pair = CellKey("meta_lora", 16, TARGET), CellKey("lora_aug", 16, TARGET)
    claim = "at rank 16 Meta-LoRA keeps more CLIP-T than LoRA+aug"
    claims.append(measures.higher(scores, *pair, metric="clip_t", claim=claim))
    of_ranks = {"1": (scores, 1), "16": (scores, 16), "1, seed 0": (seed, 1)}
    if (seed["rank"] == 4).any():
        of_ranks |= {"4, seed 0": (seed, 4)}
    of_ranks |= {"16, seed 0": (seed, 16)}
    for method in ("lora_aug", "meta_lora"):
        for name, (table, rank) in of_ranks.items():
            rows += [(look.label(method), name, *cell_texts(table, key)) for key in curve(table, method, rank=rank)]
    cells = Table("Ranks, common rate", ("method", "rank", *CELL_HEADER), tuple(rows))
    gaps = [
        (name, *row)
        for name, (table, rank) in of_ranks.items()
        for row in gap_rows(table, "meta_lora", "lora_aug", rank=rank)
    ]
    title = "Meta-LoRA - LoRA+aug, common rate (not of the protocol but at rank 1)"
    against = Table(title, ("rank", "iterations", *GAPS_HEADER), tuple(gaps))
    areas = measures.areas({f"rank {name}": one for name, one in of_ranks.items()}, "meta_lora", "lora_aug")
    picture = draw.over_ranks(scores, seed, out, "c_ranks", iterations=TARGET)
    return Shown((cells, against, areas), (picture,), tuple(claims))


def random_down(evidence: Evidence, out: Path) -> Shown:
    """(d) Meta-Downs of the same norms that have learned nothing."""
    scores, claims, rows = evidence.common, [], []
    times = (250, EARLY, TARGET)
    for n in times:
        claim = f"a learned Meta-Down is better than a random one of the same norm at {n} iterations"
        pair = CellKey("meta_lora", 1, n), CellKey(RANDOM, 1, n)
        claims.append(measures.higher(scores, *pair, metric="r_face_sim", claim=claim))
    claims.append(_above(scores, "meta_lora", RANDOM, "the learned Meta-Down's frontier lies above the random one's"))
    methods = ["lora_aug", "meta_lora", RANDOM]
    later = {"random - LoRA+aug": (RANDOM, "lora_aug")}
    if evidence.has("spectrum-"):
        methods.append(SPECTRUM)
        later |= {"learned - its singular values in random directions": ("meta_lora", SPECTRUM)}
        later |= {"singular values - LoRA+aug": (SPECTRUM, "lora_aug")}
        for n in times:
            claim = f"... and than one of the same singular values in random directions, at {n} (not of the protocol)"
            pair = CellKey("meta_lora", 1, n), CellKey(SPECTRUM, 1, n)
            claims.append(measures.higher(scores, *pair, metric="r_face_sim", claim=claim))
    for method in methods:
        rows += [(look.label(method), *cell_texts(scores, key)) for key in curve(scores, method)]
    cells = Table("What Stage 1 learned, rank 1, common rate", ("method", *CELL_HEADER), tuple(rows))
    gaps = []
    for name, (ours, other) in later.items():
        area = measures.area(scores, from_base(scores, ours), from_base(scores, other))
        pairs = [(CellKey(ours, 1, n), CellKey(other, 1, n)) for n in times]
        found = [gap_text(measures.compare(scores, *pair, metric="r_face_sim")) for pair in pairs]
        gaps.append((name, *found, gap_text(area)))
    header = ("which", *(f"R-FaceSim at {n}" for n in times), "area between the frontiers")
    asked = Table("Not of the protocol", header, tuple(gaps))
    seeds = measures.by_seed({"common rate": scores}, "meta_lora", RANDOM)
    picture = draw.against({"common rate": scores}, methods, out, "d_random")
    return Shown((cells, asked, seeds), (picture,), tuple(claims))


def widths(evidence: Evidence, out: Path) -> Shown:
    """(e) r1 over the length of Stage 1."""
    tables = evidence.widths()
    sizes, lengths = (sorted({key[n] for key in tables}) for n in (0, 1))
    key = CellKey("meta_lora", 1, EARLY)
    rows = [
        (str(size), str(length), *cell_texts(tables[size, length], CellKey("meta_lora", 1, n)))
        for size in sizes
        for length in lengths
        for n in (250, EARLY)
    ]
    asked = []
    for size in sizes:
        if size != 32:
            text = f"r1 32 is better than r1 {size} (R-FaceSim at {EARLY} iterations, mean of all lengths of Stage 1)"
            asked.append((text, [(32, n) for n in lengths], [(size, n) for n in lengths]))
    text = f"a longer Stage 1 is better ({lengths[-1]} against {lengths[0]} iterations, mean of all r1)"
    asked.append((text, [(size, lengths[-1]) for size in sizes], [(size, lengths[0]) for size in sizes]))
    claims, seeds = [], []
    for text, ours, others in asked:
        pair = [tables[k] for k in ours], [tables[k] for k in others]
        face, clip = (measures.paired(*pair, key, metric) for metric in ("r_face_sim", "clip_t"))
        claims.append(Claim(text, verdict(face), f"by {told(face)}, CLIP-T by {told(clip)}"))
        alone = [
            measures.paired(
                [of_seed(tables[k], seed) for k in ours], [of_seed(tables[k], seed) for k in others], key, "r_face_sim"
            )
            for seed in SEEDS[:2]
        ]
        seeds.append((text, *(points(one.mean, sign=True) for one in alone)))
    title = "Width of Meta-Down and length of Stage 1, women, two seeds; 250, 500, 1,000 iterations hold 120, 260, 600"
    table = Table(f"{title} that train Meta-Down, on 20, 60, 100 people", ("r1", "Stage 1", *CELL_HEADER), tuple(rows))
    each = Table("Each seed alone", ("which", "seed 0", "seed 1"), tuple(seeds))
    wider = list(zip(sizes[1:], sizes[:-1], strict=True))
    later = [
        *((f"r1 {a} - {b}", [(a, n) for n in lengths], [(b, n) for n in lengths]) for a, b in wider),
        *((f"Stage 1 {lengths[-1]} - {lengths[0]}, r1 {a}", [(a, lengths[-1])], [(a, lengths[0])]) for a in sizes),
        (
            f"r1 {sizes[-1]} after {lengths[0]} - r1 {sizes[-2]} after {lengths[-1]}",
            [(sizes[-1], lengths[0])],
            [(sizes[-2], lengths[-1])],
        ),
    ]
    gaps = [
        (name, *(gap_text(measures.paired([tables[k] for k in a], [tables[k] for k in b], key, m)) for m in GAPS))
        for name, a, b in later
    ]
    apart = Table(f"At {EARLY} iterations of Stage 2 (not of the protocol)", ("which", *GAPS_HEADER), tuple(gaps))
    return Shown((table, each, apart), (draw.over_widths(tables, out, "e_widths", key=key),), tuple(claims))


def stage1_people(evidence: Evidence, out: Path) -> Shown:
    """(f) how many people Stage 1 sees in the same number of iterations."""
    tables = {count: evidence.people(count) for count in (50, 100, 200)}
    times = (250, EARLY, TARGET)
    rows = [
        (str(count), *cell_texts(table, CellKey("meta_lora", 1, n))) for count, table in tables.items() for n in times
    ]
    claims, gaps = [], []
    for more, fewer, later in ((100, 50, ""), (200, 100, ""), (200, 50, "; asked after the others were seen")):
        for n in times:
            found = {m: measures.paired([tables[more]], [tables[fewer]], CellKey("meta_lora", 1, n), m) for m in GAPS}
            gaps.append((f"{more} - {fewer}", str(n), *(gap_text(one) for one in found.values())))
            if n != TARGET:
                text = f"{more} people in Stage 1 are better than {fewer} (R-FaceSim at {n} iterations{later})"
                claims.append(Claim(text, verdict(found["r_face_sim"]), f"by {told(found['r_face_sim'])}"))
    title = "People in Stage 1, rank 1, common rate; 50, 100, 200 are 10, 20, 40 at a time, each with 20, 10, 5 uses"
    table = Table(f"{title} of an image", ("people", *CELL_HEADER), tuple(rows))
    title = "Differences (of the protocol: R-FaceSim of 100 - 50 and 200 - 100 at 250 and 375 iterations)"
    between = Table(title, ("people", "iterations", *GAPS_HEADER), tuple(gaps))
    return Shown((table, between), (draw.over_people(tables, out, "f_people"),), tuple(claims))


QUESTIONS = (
    Question("a", "Meta-LoRA against LoRA+aug", ("rate-", "rank01-"), meta_against_aug),
    Question("b", "LoRA+aug against LoRA", ("rate-", "rank01-"), aug_against_lora),
    Question("c", "does a higher rank overfit", ("rate-", "rank01-", "rank16-"), ranks),
    Question("d", "a random Meta-Down of the same norm", ("rate-", "rank01-", "random-"), random_down),
    Question("e", "r1 over the length of Stage 1", ("rate-", "r1-"), widths),
    Question("f", "people in Stage 1", ("rate-", "rank01-", "people"), stage1_people),
)
