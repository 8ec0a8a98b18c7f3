"""Tables 1 and 2 of a study beside the paper's, for the terminal, as Markdown and as CSV; simulated answers say so."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metalora.core.atomic import write_bytes
from metalora.reporting.look import label
from metalora.reporting.study import paper_reference
from metalora.reporting.tables import NONE, Table, as_text
from metalora.reporting.user_study.analysis import Analysis, Answers, Comparison, Share

COLUMNS = {
    "overall": "overall",
    "multi": "multi-reference",
    "single": "single-reference",
    "recontextualized": "recontextualized",
    "stylized": "stylistic",
}
TITLES = {1: "Table 1, the best overall result", 2: "Table 2, the better set of images"}
SIMULATED = "SIMULATED: nobody was asked, these answers were drawn from known probabilities"
TRIAL = "TRIAL: somebody trying the page, no participants"
METHOD = (
    "95% intervals: BCa bootstrap over participants, each with all their answers, widened for few participants "
    '(Hesterberg 2015); "other questions too": questions drawn again as well (pigeonhole bootstrap). p: exact '
    "two-sided sign-flip test of paired differences over participants, Holm-corrected within each table; the questions "
    "are fixed in it. *: the largest of its column."
)


@dataclass(frozen=True)
class Results:
    """What an analysis says: the text for the terminal and the files it wrote."""

    text: str
    files: tuple[Path, ...]


def write_results(
    out: Path, *, answers: Answers, analyses: Sequence[Analysis], world: str, facts: Mapping[str, Any]
) -> Results:
    """Write study.md, shares.csv and comparisons.csv into `out`; file names of what no person answered say it too.

    Args:
        world: what the images were made with, in words.
        facts: more about the study, for the reader.
    """
    prefix = "" if answers.kind == "person" else f"{answers.kind}_"
    head = _head(answers, analyses, world=world)
    tables = [table for analysis in analyses for table in _tables(analysis, kind=answers.kind)]
    told = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    page = "\n\n".join([f"# User study: {world}", *head, told, *(_markdown(table) for table in tables), METHOD]) + "\n"
    files = (out / f"{prefix}study.md", out / f"{prefix}shares.csv", out / f"{prefix}comparisons.csv")
    for path, text in zip(
        files, (page, _shares_csv(answers, analyses), _comparisons_csv(answers, analyses)), strict=True
    ):
        write_bytes(path, text.encode())
    return Results("\n\n".join([*head, *(as_text(table) for table in tables), METHOD]), files)


def _head(answers: Answers, analyses: Sequence[Analysis], *, world: str) -> list[str]:
    lines = [_marked(answers.kind)] if answers.kind != "person" else []
    left_out = f"; {answers.unfinished} who did not finish are left out" if answers.unfinished else ""
    lines += [f"{answers.participants} participants who answered every question{left_out}. Images: {world}."]
    lacking = [a for a in analyses if not a.comparisons]
    return [*lines, *(f"{_table(a.part)} has no differences: {label(a.ours)} was not in it." for a in lacking)]


def _table(part: int) -> str:
    return TITLES[part].split(",")[0]


def _marked(kind: str) -> str:
    return SIMULATED if kind == "simulated" else TRIAL


def _tables(analysis: Analysis, *, kind: str) -> list[Table]:
    note = "" if kind == "person" else f" [{_marked(kind).split(':')[0]}]"
    asked = ", ".join(f"{COLUMNS[c]} {n}" for c, n in analysis.questions.items())
    ours = {s.model for s in analysis.shares}
    theirs = {row["method"] for row in paper_reference()["user_study"][f"table_{analysis.part}"]["rows"]}
    other = "" if ours == theirs else "; the paper's are of a choice between other models"
    name = f"{_table(analysis.part)}{note}"
    found = [
        _shares(analysis, f"{TITLES[analysis.part]}{note}: percent of answers [95%] (questions: {asked}){other}"),
        _tests(analysis, f"{name}: differences in points"),
        _shifts(analysis, f"{name}: shifts between the columns, in points"),
        papers(analysis.part),
    ]
    return [table for table in found if table.rows]


def _shares(analysis: Analysis, title: str) -> Table:
    columns = ["overall", *analysis.questions]
    best = {c: max(s.percent for s in analysis.shares if s.column == c) for c in columns}
    models = list(dict.fromkeys(s.model for s in analysis.shares))
    rows = []
    for model in models:
        cells = {s.column: s for s in analysis.shares if s.model == model}
        rows.append(
            (
                label(model),
                *(_cell(cells[c], best=cells[c].percent == best[c]) for c in columns),
                f"[{cells['overall'].low_both:.1f}, {cells['overall'].high_both:.1f}]",
                *(_papers_number(analysis.part, model, c) for c in columns),
            )
        )
    header = (
        "model",
        *(COLUMNS[c] for c in columns),
        "overall, other questions too",
        *(f"paper: {COLUMNS[c]}" for c in columns),
    )
    return Table(title, header, tuple(rows))


def _cell(share: Share, *, best: bool) -> str:
    return f"{share.percent:.1f}{'*' if best else ''} [{share.low:.1f}, {share.high:.1f}]"


def _papers_number(part: int, model: str, column: str) -> str:
    rows = {row["method"]: row for row in paper_reference()["user_study"][f"table_{part}"]["rows"]}
    return _printed(part, rows[model][column]) if model in rows else NONE


def _printed(part: int, percent: float) -> str:
    """With the paper's digits."""
    return f"{percent:.3f}" if part == 1 else f"{percent:.2f}"


def papers(part: int) -> Table:
    """The paper's own table."""
    reference = paper_reference()
    asked = reference["user_study"]
    told = asked[f"table_{part}"]
    rows = tuple((row["label"], *(_printed(part, row[c]) for c in told["columns"])) for row in told["rows"])
    count = f"{asked['participants']} participants, {asked['answers']} answers in both parts"
    title = f"The paper's {told['source']}, another world: {reference['setting']}; {count}"
    return Table(title, ("model", *(COLUMNS[c] for c in told["columns"])), rows)


def _tests(analysis: Analysis, title: str) -> Table:
    rows = [
        (f"{label(c.a)} minus {label(c.b)}", COLUMNS[c.column], _points(c), _p(c.p), _p(c.p_holm))
        for c in analysis.comparisons
    ]
    return Table(title, ("difference", "column", "points [95%]", "p", "p, Holm"), tuple(rows))


def _shifts(analysis: Analysis, title: str) -> Table:
    rows = [
        (label(c.column), f"{COLUMNS[c.a]} minus {COLUMNS[c.b]}", _points(c), _p(c.p), _p(c.p_holm))
        for c in analysis.shifts
    ]
    return Table(title, ("model", "shift", "points [95%]", "p", "p, Holm"), tuple(rows))


def _points(c: Comparison) -> str:
    return f"{c.points:+.1f} [{c.low:+.1f}, {c.high:+.1f}]"


def _p(value: float) -> str:
    return "<0.0001" if value < 1e-4 else f"{value:.4f}"


def _markdown(table: Table) -> str:
    rows = [table.header, ("---",) * len(table.header), *table.rows]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([f"## {table.title}", "", *lines])


def _shares_csv(answers: Answers, analyses: Sequence[Analysis]) -> str:
    names = ("table", "answered_by", "participants", "column", "model", "percent", "low", "high", "low_and_questions")
    names += ("high_and_questions", "answers", "paper_percent")
    rows = [
        (
            *(a.part, answers.kind, a.participants, s.column, s.model),
            *(s.percent, s.low, s.high, s.low_both, s.high_both, s.answers),
            _papers_number(a.part, s.model, s.column).replace(NONE, ""),
        )
        for a in analyses
        for s in a.shares
    ]
    return _csv(names, rows)


def _comparisons_csv(answers: Answers, analyses: Sequence[Analysis]) -> str:
    names = ("table", "answered_by", "participants", "kind", "a", "b", "of", "points", "low", "high", "p", "p_holm")
    rows = [
        (a.part, answers.kind, a.participants, kind, c.a, c.b, c.column, c.points, c.low, c.high, c.p, c.p_holm)
        for a in analyses
        for kind, found in (("difference", a.comparisons), ("shift", a.shifts))
        for c in found
    ]
    return _csv(names, rows)


def _csv(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([[f"{x:.6g}" if isinstance(x, float) else x for x in row] for row in rows])
    return buffer.getvalue()
