"""The table and the picture of all methods side by side, from score tables alone.

    python -m experiments.comparison.compare OUT SCORES.parquet ...

Writes OUT/scores.csv, OUT/table.md and OUT/grid.png. Scores in percent; a generated image without a face counts as 0 in
FaceSim and R-FaceSim, and is left out of the drop and of the copy-paste score, which say how a face looks, not whether
there is one. Intervals: 95% over people.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from experiments.shown import by_person, paired
from metalora.core import metrics
from metalora.core.errors import UserError
from metalora.evaluation.curves import CellKey, cell_keys, class_nouns, on_own_base, rows_of
from metalora.evaluation.drop import drop_of_people
from metalora.evaluation.score_table import BASE, PHOTO_METHODS, TEST_PHOTO, read_scores
from metalora.people.photos import load_photo
from metalora.reporting import look

if TYPE_CHECKING:
    import pandas as pd

ORDER = (BASE, "textual_inversion", "lora", "lora_aug", "dreambooth", "dreambooth_aug", "meta_lora", "ip_adapter")
AHEAD = 0.2
"""What a tuning-free rival's FaceSim has to be above the base's before anything is compared."""
COMPARED_AT = 375
"""Iterations at which methods are compared, the paper's; the table has them all."""
_MARGIN = 110
_GRID_PEOPLE, _GRID_PROMPTS, _TILE = 4, 3, 66


def cells(scores: "pd.DataFrame") -> list[CellKey]:
    """Methods in the table's order, each at its iterations.

    Raises:
        UserError: a method at several ranks, which would look like one.
    """
    keys = [key for key in cell_keys(scores) if key.method in ORDER]
    ranks = {method: sorted({key.rank for key in keys if key.method == method}) for method in ORDER}
    several = {method: of for method, of in ranks.items() if len(of) > 1}
    if several:
        raise UserError(
            "methods are compared at one rank",
            expected="tables of one, such as evaluate/*-r1-*/scores.parquet",
            got="; ".join(f"{method} at ranks {', '.join(map(str, of))}" for method, of in several.items()),
            key="SCORES",
        )
    return sorted(keys, key=lambda key: (ORDER.index(key.method), key.iterations))


def rows_at(scores: "pd.DataFrame", key: CellKey) -> "pd.DataFrame":
    """A cell's rows of everybody; none while a class of the table lacks the cell."""
    return rows_of(scores, key, class_noun=class_nouns(scores)[-1])


def summarised(scores: "pd.DataFrame") -> "pd.DataFrame":
    """One row per method: every score with its interval."""
    import pandas as pd

    table = []
    for key in [*cells(scores), CellKey(TEST_PHOTO, 0, 0)]:
        own = rows_at(scores, key)
        if not len(own):
            continue
        of_faces = "_detected" if key.method == TEST_PHOTO else ""  # a missed real photo says nothing of likeness
        of_people = {
            "FaceSim": by_person(own, f"face_sim{of_faces}"),
            "R-FaceSim": by_person(own, f"r_face_sim{of_faces}"),
            "drop": drop_of_people(own),
            "copy-paste": by_person(own, "copy_paste"),
            "CLIP-T": by_person(own, "clip_t"),
            "faces found": by_person(own, "face_found"),
        }
        row: dict[str, object] = {"method": key.method, "iterations": key.iterations}
        people = own.loc[own["face_found"].notna(), "identity"]
        row |= {"people": people.nunique(), "images": len(set(own["file"]))}
        for name, values in of_people.items():
            found = metrics.bootstrap(values.to_numpy(dtype=float))
            row |= {name: found.mean, f"{name} low": found.low, f"{name} high": found.high}
        table.append(row)
    return pd.DataFrame(table)


def as_markdown(table: "pd.DataFrame") -> str:
    """The table as people read it."""
    shown = ("FaceSim", "R-FaceSim", "drop", "copy-paste", "CLIP-T", "faces found")
    lines = ["| method | iterations | " + " | ".join(shown) + " |", "|---|---|" + "---|" * len(shown)]
    for row in table.to_dict("records"):
        texts = [_text(row[name], row[f"{name} low"], row[f"{name} high"]) for name in shown]
        count = "" if row["method"] == TEST_PHOTO else str(row["iterations"] or "none")
        lines.append(f"| {_label(row['method'])} | {count} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def _label(method: str) -> str:
    return "real photos of the person" if method == TEST_PHOTO else look.label(method)


def _text(mean: float, low: float, high: float) -> str:
    return "" if np.isnan(mean) else f"{100 * mean:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def claims(scores: "pd.DataFrame") -> list[str]:
    """What is to be shown, with the numbers that decide it; paired over people."""
    lines = []
    rival, base = (rows_at(scores, CellKey(method, 0, 0)) for method in ("ip_adapter", BASE))
    if rival.empty or base.empty:
        return ["no tuning-free rival, or no base, in these tables: nothing to compare"]
    ahead = paired(*(by_person(rows, "face_sim") for rows in (rival, base)))
    word = "reached" if ahead.mean >= AHEAD else "NOT reached"
    lines.append(f"FaceSim of the tuning-free rival above the base's: {_of(ahead)}, at least {AHEAD:g} {word}")
    for key in cells(scores):
        if key.method in (BASE, "ip_adapter") or key.iterations != COMPARED_AT:
            continue
        other = rows_at(scores, key)
        copied = paired(by_person(rival, "copy_paste"), by_person(other, "copy_paste"))
        dropped = paired(drop_of_people(rival), drop_of_people(other))
        lines.append(
            f"tuning-free against {look.label(key.method)} at {key.iterations}: copy-paste higher by {_of(copied)}, "
            f"drop larger by {-100 * dropped.mean:.1f} points ({-100 * dropped.high:.1f} to {-100 * dropped.low:.1f})"
        )
    return lines


def _of(found: metrics.PairedDifference) -> str:
    return f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f}, {found.identities} people)"


def grid(scores: "pd.DataFrame", *, at: Mapping[str, CellKey]) -> Image.Image:
    """Rows: people in turn of class, for each the methods below one another; first column the reference photo."""
    faces = scores[scores["face_found"].notna() & scores["method"].isin(ORDER)]
    nouns = {noun: sorted(set(group["identity"])) for noun, group in faces.groupby("class_noun")}
    people = [identity for pair in zip(*nouns.values(), strict=False) for identity in pair][:_GRID_PEOPLE]
    methods = [method for method in ORDER if method in at]
    prompts = sorted(set(faces["prompt_id"]))[:_GRID_PROMPTS]
    columns = len(people) * (_GRID_PROMPTS + 1)
    sheet = Image.new("RGB", (_MARGIN + columns * _TILE, len(methods) * _TILE), "white")
    pen = ImageDraw.Draw(sheet)
    for line, method in enumerate(methods):
        pen.text((4, line * _TILE + _TILE // 2 - 6), look.label(method), fill="black")
    for number, identity in enumerate(people):
        left = number * (_GRID_PROMPTS + 1)
        for line, method in enumerate(methods):
            own = rows_at(scores, at[method])
            own = own[own["identity"] == identity]
            reference = _tile(Path(own["reference"].iloc[0]))
            sheet.paste(reference, (_MARGIN + left * _TILE, line * _TILE))
            for place, prompt in enumerate(prompts, start=left + 1):
                found = own[own["prompt_id"] == prompt]["file"]
                if len(found):
                    sheet.paste(_tile(Path(found.iloc[0])), (_MARGIN + place * _TILE, line * _TILE))
    return sheet


def _tile(path: Path) -> Image.Image:
    return Image.fromarray(load_photo(path, min_side=1)).resize((_TILE - 2, _TILE - 2), Image.Resampling.LANCZOS)


def main(out: Path, tables: Sequence[Path]) -> None:
    """Read, summarise, write."""
    scores = on_own_base(read_scores(list(tables)))
    if "copy_paste" not in scores or scores.loc[~scores["method"].isin(PHOTO_METHODS), "copy_paste"].isna().all():
        raise SystemExit("compare: these tables have no copy-paste score; score the images again (README.md)")
    out.mkdir(parents=True, exist_ok=True)
    table = summarised(scores)
    table.round(5).to_csv(out / "scores.csv", index=False)
    text = as_markdown(table) + "\n" + "\n".join(f"- {line}" for line in claims(scores)) + "\n"
    (out / "table.md").write_text(text)
    at = {key.method: key for key in cells(scores)}  # the last one
    at |= {key.method: key for key in cells(scores) if key.iterations == COMPARED_AT}
    grid(scores, at=at).save(out / "grid.png", optimize=True)
    print(text)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    try:
        main(Path(sys.argv[1]), [Path(word) for word in sys.argv[2:]])
    except UserError as error:
        raise SystemExit(f"compare: {error}") from None
