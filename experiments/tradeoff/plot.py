"""Redraw everything the study found, from results/scores: figures, tables, answers, cost.

    python -m experiments.tradeoff.plot [results=DIR] [out=DIR]

OUT: the folder of results by default. Nothing is trained or drawn again.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from experiments.shown import Claim, Shown, points
from experiments.tradeoff import choose, measures, recognition, store
from experiments.tradeoff.evidence import Evidence
from experiments.tradeoff.measures import gap_text
from experiments.tradeoff.protocol import METHODS, RATES, RUNS, TARGET
from experiments.tradeoff.questions import QUESTIONS
from metalora.core.atomic import write_bytes, write_json
from metalora.core.errors import UserError
from metalora.evaluation.curves import BOTH, CellKey, cell
from metalora.reporting import look
from metalora.reporting.tables import Table, as_text

ANSWER = {True: "YES", False: "NO", None: "NOT DECIDED"}


def main(words: Sequence[str]) -> None:
    """Draw every question whose runs are there; say which are not."""
    given = dict(word.split("=", 1) for word in words if "=" in word)
    if strange := [word for word in words if "=" not in word or word.split("=")[0] not in ("results", "out")]:
        raise UserError("unknown option", expected="[results=DIR] [out=DIR]", got=strange[0])
    results = Path(given.get("results", store.RESULTS))
    out, evidence = Path(given.get("out", results)), Evidence(results)
    parts, answers = [cost(results)], {}
    if evidence.has("rate-"):
        parts += [_fenced(rates_table(results)), _fenced(rates_differences(results))]
    if evidence.has("rank01-"):
        parts.append(recognition.said(results))
    for question in QUESTIONS:
        title = f"## ({question.letter}) {question.text}"
        if not evidence.has(*question.runs):
            parts.append(f"{title}\n\nNot run yet.")
            continue
        shown = question.answer(evidence, out)
        parts += [title, *told(shown)]
        answers[question.letter] = [asdict(claim) for claim in shown.claims]
    write_json(out / "answers.json", answers)
    write_bytes(out / "tradeoff.md", ("\n\n".join(parts) + "\n").encode())
    print("\n\n".join(parts))
    print(f"\nwritten: {out / 'tradeoff.md'}, {out / 'answers.json'}, and the figures beside them")


def told(shown: Shown) -> list[str]:
    """Answers, figures and tables as Markdown."""
    lines = [line(claim) for claim in shown.claims]
    pictures = [f"![{picture.name}]({picture.png.name})" for picture in shown.pictures]
    return ["\n".join(lines), *pictures, *(_fenced(table) for table in shown.tables)]


def line(claim: Claim) -> str:
    """An answer in one line."""
    return f"- {claim.claim}: **{ANSWER[claim.holds]}**, {claim.evidence}."


def rates_table(results: Path) -> Table:
    """Every rate of every method on validation people, and what was chosen."""
    tables = {rate: store.read_run(f"rate-{rate:g}", results=results) for rate in RATES}
    own = {method: choose.own_rate(method, results) for method in METHODS}
    rows = []
    for rate, scores in tables.items():
        texts = []
        for method in METHODS:
            found = cell(scores, CellKey(method, 1, TARGET), class_noun=BOTH).scores
            mark = "*" if own[method] == rate else ""
            texts.append(f"{points(found['r_face_sim'].mean)} / {points(found['clip_t'].mean)}{mark}")
        rows.append((f"{rate:g}", *texts))
    base = cell(next(iter(tables.values())), CellKey("base", 0, 0), class_noun=BOTH).scores
    rows.append(("base", f"{points(base['r_face_sim'].mean)} / {points(base['clip_t'].mean)}", "", ""))
    title = f"R-FaceSim / CLIP-T on validation people, {TARGET} iterations, rank 1; * is a method's own rate"
    return Table(title, ("rate", *(look.label(method) for method in METHODS)), tuple(rows))


def rates_differences(results: Path) -> Table:
    """Methods against each other at every equal rate, on validation people: seed 0, nothing is decided by it."""
    rows = []
    for rate in RATES:
        scores = store.read_run(f"rate-{rate:g}", results=results)
        for ours, other in (("lora_aug", "lora"), ("meta_lora", "lora_aug")):
            for n in (measures.EARLY, TARGET):
                pair = CellKey(ours, 1, n), CellKey(other, 1, n)
                found = (gap_text(measures.compare(scores, *pair, metric=m)) for m in ("r_face_sim", "clip_t"))
                rows.append((f"{rate:g}", f"{look.label(ours)} - {look.label(other)}", str(n), *found))
    title = "The same at equal rates, differences (one seed; not of the protocol)"
    return Table(title, ("rate", "which", "iterations", "R-FaceSim", "CLIP-T"), tuple(rows))


def cost(results: Path) -> str:
    """Wall time of all runs that are there; two runs of one core each go side by side."""
    lines = store.costs(results)
    hours = sum(one["seconds"] * one.get("cores", 2) for one in lines) / 2 / 3600
    return f"{len(lines)} runs of at most {len(RUNS)}, {hours:.1f} hours of wall time on two cores."


def _fenced(table: Table) -> str:
    return "```\n" + as_text(table) + "\n```"


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        raise SystemExit(f"tradeoff: {error}") from None
