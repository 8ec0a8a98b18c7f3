"""The table and the picture of all methods side by side, from score tables alone.

    python -m experiments.comparison.compare OUT SCORES.parquet ...

Writes OUT/scores.csv, OUT/table.md and OUT/grid.png. Scores in percent; a generated image without a face counts as 0 in
FaceSim and R-FaceSim, and is left out of the drop and of the copy-paste score, which say how a face looks, not whether
there is one. Intervals: 95% over people.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from metalora.core import metrics
from metalora.core.metrics import Interval
from metalora.evaluation.curves import on_own_base
from metalora.evaluation.drop import drop_of_people
from metalora.evaluation.score_table import BASE, PHOTO_METHODS, TEST_PHOTO, read_scores
from metalora.people.photos import load_photo

if TYPE_CHECKING:
    import pandas as pd

ORDER = (BASE, "textual_inversion", "lora", "lora_aug", "dreambooth", "dreambooth_aug", "meta_lora", "ip_adapter")
NAMES = {
    BASE: "untouched base",
    "textual_inversion": "textual inversion",
    "dreambooth": "DreamBooth",
    "dreambooth_aug": "DreamBooth+aug",
    "lora": "LoRA",
    "lora_aug": "LoRA+aug",
    "meta_lora": "Meta-LoRA",
    "ip_adapter": "IP-Adapter-like",
    TEST_PHOTO: "real photos of the person",
}
AHEAD = 0.2
"""What a tuning-free rival's FaceSim has to be above the base's before anything is compared."""
COMPARED_AT = 375
"""Iterations at which methods are compared, the paper's; the table has them all."""
_MARGIN = 110
_GRID_PEOPLE, _GRID_PROMPTS, _TILE = 4, 3, 66


def of_people(rows: "pd.DataFrame", column: str, *, missed: bool = False) -> "pd.Series":
    """Mean of a score per person. `missed`: an image without a face counts as 0; else it is left out."""
    values = rows[column].where(rows["face_found"] != 0, 0.0) if missed else rows[column]
    return values.groupby(rows["identity"]).mean()


def interval(values: "pd.Series") -> Interval:
    """Mean and bootstrap interval over people."""
    return metrics.bootstrap(values.to_numpy(dtype=float))


def cells(scores: "pd.DataFrame") -> list[tuple[str, int]]:
    """Methods in the table's order, each at its iterations."""
    found = scores[["method", "iterations"]].drop_duplicates().to_numpy().tolist()
    known = [(str(method), int(count)) for method, count in found if method in ORDER]
    return sorted(known, key=lambda cell: (ORDER.index(cell[0]), cell[1]))


def rows_of(scores: "pd.DataFrame", method: str, iterations: int) -> "pd.DataFrame":
    """One method's rows."""
    return scores[(scores["method"] == method) & (scores["iterations"] == iterations)]


def summarised(scores: "pd.DataFrame") -> "pd.DataFrame":
    """One row per method: every score with its interval."""
    import pandas as pd

    table = []
    for method, iterations in [*cells(scores), (TEST_PHOTO, 0)]:
        own = rows_of(scores, method, iterations)
        faces = own[own["face_found"].notna()]
        if not len(own):
            continue
        found = {
            "FaceSim": interval(of_people(faces, "face_sim", missed=method != TEST_PHOTO)),
            "R-FaceSim": interval(of_people(faces, "r_face_sim", missed=method != TEST_PHOTO)),
            "drop": interval(drop_of_people(faces)),
            "copy-paste": interval(of_people(faces, "copy_paste")),
            "CLIP-T": interval(of_people(own, "clip_t")),
            "faces found": interval(of_people(faces, "face_found")),
        }
        row: dict[str, object] = {"method": method, "iterations": iterations}
        row |= {"people": faces["identity"].nunique(), "images": len(set(own["file"]))}
        for name, value in found.items():
            row |= {name: value.mean, f"{name} low": value.low, f"{name} high": value.high}
        table.append(row)
    return pd.DataFrame(table)


def as_markdown(table: "pd.DataFrame") -> str:
    """The table as people read it."""
    shown = ("FaceSim", "R-FaceSim", "drop", "copy-paste", "CLIP-T", "faces found")
    lines = ["| method | iterations | " + " | ".join(shown) + " |", "|---|---|" + "---|" * len(shown)]
    for row in table.to_dict("records"):
        texts = [_text(row[name], row[f"{name} low"], row[f"{name} high"]) for name in shown]
        count = "" if row["method"] == TEST_PHOTO else str(row["iterations"] or "none")
        lines.append(f"| {NAMES[row['method']]} | {count} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def _text(mean: float, low: float, high: float) -> str:
    return "" if np.isnan(mean) else f"{100 * mean:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def claims(scores: "pd.DataFrame") -> list[str]:
    """What is to be shown, with the numbers that decide it; paired over people."""
    lines = []
    faces = scores[scores["face_found"].notna()]
    rival, base = rows_of(faces, "ip_adapter", 0), rows_of(faces, BASE, 0)
    if rival.empty or base.empty:
        return ["no tuning-free rival, or no base, in these tables: nothing to compare"]
    ahead = _paired(*(of_people(rows, "face_sim", missed=True) for rows in (rival, base)))
    word = "reached" if ahead.mean >= AHEAD else "NOT reached"
    lines.append(f"FaceSim of the tuning-free rival above the base's: {_of(ahead)}, at least {AHEAD:g} {word}")
    for method, iterations in cells(scores):
        if method in (BASE, "ip_adapter") or iterations != COMPARED_AT:
            continue
        other = rows_of(faces, method, iterations)
        copied = _paired(of_people(rival, "copy_paste"), of_people(other, "copy_paste"))
        dropped = _paired(drop_of_people(rival), drop_of_people(other))
        lines.append(
            f"tuning-free against {NAMES[method]} at {iterations}: copy-paste higher by {_of(copied)}, "
            f"drop larger by {-100 * dropped.mean:.1f} points ({-100 * dropped.high:.1f} to {-100 * dropped.low:.1f})"
        )
    return lines


def _paired(a: "pd.Series", b: "pd.Series") -> metrics.PairedDifference:
    people = sorted(set(a.index) & set(b.index))
    return metrics.paired_bootstrap(a[people].to_numpy(dtype=float), b[people].to_numpy(dtype=float))


def _of(found: metrics.PairedDifference) -> str:
    return f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f}, {found.identities} people)"


def grid(scores: "pd.DataFrame", *, at: dict[str, int]) -> Image.Image:
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
        pen.text((4, line * _TILE + _TILE // 2 - 6), NAMES[method], fill="black")
    for number, identity in enumerate(people):
        left = number * (_GRID_PROMPTS + 1)
        for line, method in enumerate(methods):
            own = rows_of(faces, method, at[method])
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
    at = {method: max(count for name, count in cells(scores) if name == method) for method, _ in cells(scores)}
    at |= {method: count for method, count in cells(scores) if count == COMPARED_AT}
    grid(scores, at=at).save(out / "grid.png", optimize=True)
    print(text)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), [Path(word) for word in sys.argv[2:]])
