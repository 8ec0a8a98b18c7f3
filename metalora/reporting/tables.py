"""The comparison tables (Tables 3 and 4 in miniature) beside the paper's own numbers, as plain text cells."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from metalora.core.metrics import Interval, relative_drop
from metalora.evaluation.curves import BASE, Cell, CellKey
from metalora.reporting import look
from metalora.reporting.study import METHODS, Study, paper_reference

NONE = "–"  # noqa: RUF001


@dataclass(frozen=True)
class Table:
    """Text cells under a header; `strong` are the rows to set off."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    strong: frozenset[int] = frozenset()


def percent(value: float, *, digits: int = 1) -> str:
    """A cosine times 100, as the paper prints scores."""
    return f"{100 * value:.{digits}f}" if math.isfinite(value) else NONE


def with_interval(interval: Interval) -> str:
    """A score with its 95% interval over people."""
    if not math.isfinite(interval.mean):
        return NONE
    return f"{percent(interval.mean)} [{percent(interval.low)}, {percent(interval.high)}]"


def comparison(study: Study) -> Table:
    """Each method at the paper's operating point, and each rival that is there, over all people."""
    rows = []
    keys = [key for key in study.operating_points if study.cell(key) or not study.rivals]
    for key in (CellKey(BASE, 0, 0), *study.rivals, *keys):
        cell = study.cell(key)
        name = look.label(key.method)
        if cell is None:
            rows.append((name, _where(key), *["not run"] + [NONE] * 6))
            continue
        s = cell.scores
        drop = relative_drop(s["face_sim"].mean, s["r_face_sim"].mean)
        rows.append(
            (
                name,
                _where(key),
                with_interval(s["clip_t"]),
                NONE if key.method == BASE else with_interval(s["clip_i"]),
                with_interval(s["face_sim"]),
                with_interval(s["r_face_sim"]),
                NONE if key.method == BASE or not math.isfinite(drop) else f"{100 * drop:+.1f}%",
                percent(s["face_found"].mean, digits=0),
                percent(s["r_face_sim_detected"].mean),
            )
        )
    header = (
        "method",
        "rank, iterations",
        "CLIP-T",
        "CLIP-I",
        "FaceSim",
        "R-FaceSim",
        "difference",
        "faces found %",
        "R-FaceSim, found only",
    )
    return Table(f"Measured: {study.world}", header, tuple(rows), strong=_of_method(rows, "meta_lora"))


def _of_method(rows: Sequence[tuple[str, ...]], method: str) -> frozenset[int]:
    return frozenset(n for n, row in enumerate(rows) if row[0] == look.label(method))


def _where(key: CellKey) -> str:
    """Of rivals that have neither rank nor iterations nothing."""
    return ", ".join(str(n) if n else NONE for n in (key.rank, key.iterations)) if key.rank + key.iterations else NONE


def papers() -> Table:
    """The paper's Tables 3 and 4, joined; R-FaceSim as Table 3 prints it."""
    reference = paper_reference()
    three = {row["label"]: row for row in reference["table_3"]["rows"]}
    rows = []
    for row in reference["table_4"]["rows"]:
        face = three[row["label"]]
        rows.append(
            (
                row["label"],
                f"{row['clip_t']:.2f}",
                f"{row['clip_i']:.2f}",
                f"{face['face_sim']:.2f}",
                f"{face['r_face_sim']:.2f}",
                f"{face['difference']:+.1f}%",
                row["training_images"],
            )
        )
    header = ("method", "CLIP-T", "CLIP-I", "FaceSim", "R-FaceSim", "difference", "training images")
    title = f"The paper's Tables 3 and 4, another world: {reference['setting']}"
    return Table(title, header, tuple(rows), strong=frozenset({len(rows) - 1}))


def differences(study: Study) -> Table | None:
    """Paired comparisons of Meta-LoRA with the baselines; None while there is nothing to compare."""
    meta = next(key for key in study.operating_points if key.method == "meta_lora")
    others = [
        *(CellKey(method, meta.rank, meta.iterations) for method in ("lora_aug", "lora")),
        *(key for key in study.operating_points if key.method != "meta_lora"),
    ]
    rows = []
    for other in others:
        found = [study.compare(meta, other, metric=metric) for metric in ("r_face_sim", "clip_t")]
        if None in found:
            continue
        cells = [
            f"{100 * d.mean:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]" if math.isfinite(d.mean) else NONE
            for d in found
            if d is not None
        ]
        people = " and ".join(str(d.identities) for d in found if d is not None)
        rows.append((f"{_name(meta)} minus {_name(other)}", *cells, people))
    if not rows:
        return None
    header = ("paired over people", "R-FaceSim", "CLIP-T", "people (R-FaceSim and CLIP-T)")
    return Table("Differences with 95% intervals, in points", header, tuple(rows))


def _name(key: CellKey) -> str:
    return f"{look.label(key.method)} at {key.iterations}"


def steps(study: Study) -> Table:
    """Steps to match per method and class."""
    rows = []
    for method in [m for m in METHODS if m != study.target.method]:
        for class_noun in reversed(study.classes):
            match = study.match(method, class_noun=class_noun)
            if match is None:
                continue
            early = "at most " if match.matched == match.first_checkpoint else ""
            rows.append(
                (
                    look.label(method),
                    look.CLASSES.get(class_noun, class_noun),
                    "not reached" if match.matched is None else f"{early}{match.matched:.0f}",
                    _span(*match.matched_interval),
                    NONE if match.ratio is None else f"{match.ratio:.2f}",
                    f"{100 * match.matched_share:.0f}%",
                    "not reached" if match.plain is None else f"{match.plain:.0f}",
                )
            )
    target = f"{look.label(study.target.method)} at {study.target.iterations} iterations, rank {study.target.rank}"
    header = ("method", "people", "iterations", "95%", "times fewer", "resamples that reach it", "at any CLIP-T")
    return Table(f"Iterations to the R-FaceSim of {target}, at no lower CLIP-T", header, tuple(rows))


def _span(low: float, high: float) -> str:
    ends = [f"{end:.0f}" if math.isfinite(end) else "never" for end in (low, high)]
    return f"{ends[0]} to {ends[1]}" if ends[0] != ends[1] else ends[0]


def every_cell(study: Study) -> Table:
    """All cells of all classes."""
    rows = [
        (
            look.CLASSES.get(cell.class_noun, cell.class_noun),
            look.label(cell.key.method),
            *(str(n) if n else NONE for n in (cell.key.rank, cell.key.iterations)),
            *(percent(cell.scores[metric].mean) for metric in ("clip_t", "clip_i", "face_sim")),
            with_interval(cell.scores["r_face_sim"]),
            percent(cell.scores["face_found"].mean, digits=0),
            str(cell.images),
        )
        for cell in sorted(study.cells, key=_order)
    ]
    header = (
        "people", "method", "rank", "iterations", "CLIP-T", "CLIP-I", "FaceSim", "R-FaceSim", "faces found %", "images"
    )  # fmt: skip
    return Table(f"Every cell: {study.world}", header, tuple(rows))


def _order(cell: Cell) -> tuple[str, int, str, int, int]:
    return (cell.class_noun, *look.order(cell.key.method), cell.key.rank, cell.key.iterations)


def times(study: Study) -> Table | None:
    """Seconds by stage, as they were handed in; None when nobody measured them."""
    if not study.seconds:
        return None
    rows = [(stage, _clock(seconds)) for stage, seconds in study.seconds.items()]
    return Table("Time, added up over jobs that ran side by side", ("stage", "time"), tuple(rows))


def _clock(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {seconds % 60:02.0f} s"


def as_text(table: Table) -> str:
    """A table for the terminal: title, aligned columns."""
    return _aligned(table.title, [table.header, *table.rows])


def _aligned(title: str, rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            text.ljust(width) if n == 0 else text.rjust(width)
            for n, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([title, lines[0], "-" * len(lines[0]), *lines[1:]])
