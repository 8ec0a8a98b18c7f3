"""Image grids: a person's photos and what each method makes of them. Nobody is picked: people come by name."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from metalora.core.atomic import atomic_path
from metalora.evaluation.curves import CellKey
from metalora.evaluation.score_table import BASE, TEST_PHOTO
from metalora.reporting import look
from metalora.reporting.study import Study

if TYPE_CHECKING:
    import pandas as pd

TILE = 128
GAP = 4
_ROW_LABEL = 104
_HEADER = 42
_INK, _PALE = (34, 34, 34), (245, 245, 245)


@dataclass(frozen=True)
class Tile:
    """One place of a grid: a picture with a word below it, or an empty place."""

    file: Path | None
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A labelled row of tiles."""

    label: str
    colour: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Grid:
    """A grid and what it shows."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    photos: Row | None = None
    """Stands above the column headers, which are not about it."""


def draw_grids(study: Study, *, folder: Path) -> list[tuple[look.Picture, str]]:
    """Draw every grid that the images at hand allow, with its title."""
    grids = [*_prompt_grids(study, "r_face_sim"), *_prompt_grids(study, "clip_t"), *_progress(study), *_seeds(study)]
    people = _people(study)
    drawn = [(grid, compose(grid)) for grid in ([people] if people else []) + grids]
    pictures = []
    for grid, image in drawn:
        with atomic_path(folder / f"{grid.name}.png") as path:
            image.save(path, "PNG")
        pictures.append((look.Picture(grid.name, None, folder / f"{grid.name}.png"), grid.title))
    return pictures


def _people(study: Study) -> Grid | None:
    """Everybody: reference, another photo, then each method on one prompt."""
    scores = _with_faces(study)
    keys = _shown(study)
    generated = scores.loc[scores["method"] != TEST_PHOTO]
    if generated.empty or not keys:
        return None
    rows = []
    for class_noun in sorted(generated["class_noun"].unique(), reverse=True):
        of_class = generated.loc[generated["class_noun"] == class_noun]
        prompt_id = sorted(of_class["prompt_id"].unique())[0]
        for identity in sorted(of_class["identity"].unique())[:8]:
            own = of_class.loc[(of_class["identity"] == identity) & (of_class["prompt_id"] == prompt_id)]
            tiles = [reference_tile(of_class, identity), *_test_photos(scores, identity, count=2)]
            tiles += [cell_tile(own, key, score="r_face_sim") for key in keys]
            rows.append(Row(identity, look.INK, tuple(tiles)))
    columns = ("reference", "test photo", "test photo", *(_words(key) for key in keys))
    title = (
        "Everybody of the identity part (at most eight per class), first frontal prompt; below each image its R-FaceSim"
    )
    return Grid("people", title, columns, tuple(rows))


def _prompt_grids(study: Study, score: str) -> Iterable[Grid]:
    """One person per class: methods down, prompts across."""
    scores = _with_faces(study) if score == "r_face_sim" else study.scores
    keys = _shown(study)
    generated = scores.loc[scores[score].notna() | (scores["face_found"] == 0)] if score == "r_face_sim" else scores
    generated = generated.loc[generated["method"] != TEST_PHOTO]
    if score == "clip_t":
        generated = generated.loc[generated["clip_t"].notna()]
    kind = (
        "frontal prompts, below each image its R-FaceSim"
        if score == "r_face_sim"
        else "scenes and styles, below each image its CLIP-T"
    )
    for class_noun in sorted(generated["class_noun"].unique(), reverse=True):
        of_class = generated.loc[generated["class_noun"] == class_noun]
        identity = sorted(of_class["identity"].unique())[0]
        own = of_class.loc[of_class["identity"] == identity]
        prompts = own.drop_duplicates("prompt_id").sort_values("prompt_id")[["prompt_id", "prompt"]].to_numpy()
        prompts = prompts[_spread(len(prompts), 8)]
        if not len(prompts) or not keys:
            continue
        photos = [reference_tile(own, identity), *_test_photos(study.scores, identity, count=len(prompts) - 1)]
        rows = []
        for key in keys:
            tiles = [cell_tile(own.loc[own["prompt_id"] == prompt_id], key, score=score) for prompt_id, _ in prompts]
            rows.append(Row(_words(key), look.colour(key.method), tuple(tiles)))
        columns = tuple(short_prompt(prompt, class_noun) for _, prompt in prompts)
        part = "identity" if score == "r_face_sim" else "prompts"
        head = Row("photos", look.INK, tuple(photos))
        yield Grid(f"{part}_{class_noun}", f"{identity}: {kind}", columns, tuple(rows), photos=head)


def _progress(study: Study) -> Iterable[Grid]:
    """One person per class on one prompt, iterations across: how soon the likeness comes."""
    scores = _with_faces(study)
    rank = study.target.rank
    for class_noun in sorted(scores["class_noun"].unique(), reverse=True):
        of_class = scores.loc[(scores["class_noun"] == class_noun) & (scores["method"] != TEST_PHOTO)]
        if of_class.empty or len(study.iterations) < 2:
            continue
        identity, prompt_id = (sorted(of_class[column].unique())[0] for column in ("identity", "prompt_id"))
        own = of_class.loc[(of_class["identity"] == identity) & (of_class["prompt_id"] == prompt_id)]
        rows = []
        for method in ("lora", "lora_aug", "meta_lora"):
            tiles = [cell_tile(own, CellKey(method, rank, n), score="r_face_sim") for n in study.iterations]
            if any(tile.file for tile in tiles):
                start = (reference_tile(own, identity), cell_tile(own, CellKey(BASE, 0, 0), score="r_face_sim"))
                rows.append(Row(look.label(method), look.colour(method), (*start, *tiles)))
        columns = ("reference", "base", *(f"{n} iterations" for n in study.iterations))
        if rows:
            yield Grid(f"progress_{class_noun}", f"{identity} over the iterations, rank {rank}", columns, tuple(rows))


def _seeds(study: Study) -> Iterable[Grid]:
    """One person per class on one prompt, seeds across; only when there are several."""
    scores = _with_faces(study)
    for class_noun in sorted(scores["class_noun"].unique(), reverse=True):
        of_class = scores.loc[(scores["class_noun"] == class_noun) & (scores["method"] != TEST_PHOTO)]
        seeds = sorted(of_class["seed"].unique())[:6]
        if len(seeds) < 2:
            continue
        identity, prompt_id = (sorted(of_class[column].unique())[0] for column in ("identity", "prompt_id"))
        own = of_class.loc[(of_class["identity"] == identity) & (of_class["prompt_id"] == prompt_id)]
        rows = [
            Row(
                _words(key),
                look.colour(key.method),
                tuple(cell_tile(own.loc[own["seed"] == seed], key, score="r_face_sim") for seed in seeds),
            )
            for key in _shown(study)
        ]
        yield Grid(f"seeds_{class_noun}", f"{identity}: several seeds", tuple(f"seed {s}" for s in seeds), tuple(rows))


def _with_faces(study: Study) -> "pd.DataFrame":
    methods = {cell.key.method for cell in study.cells} | {TEST_PHOTO}
    scores = study.scores
    return scores.loc[scores["face_found"].notna() & scores["method"].isin(list(methods))]


def _shown(study: Study) -> list[CellKey]:
    run = {cell.key for cell in study.cells}
    return [key for key in (CellKey(BASE, 0, 0), *study.operating_points) if key in run]


def _words(key: CellKey) -> str:
    return "base" if key.method == BASE else f"{look.label(key.method)} {key.iterations}"


def short_prompt(prompt: str, class_noun: str) -> str:
    """What is particular about a prompt."""
    text = prompt.removesuffix(".")
    for common in (f"a photo of a {class_noun}", f"A {class_noun} "):
        text = text.removeprefix(common).strip(" ,") or text
    return text


def _spread(count: int, most: int) -> list[int]:
    return list(range(count)) if count <= most else [round(k * (count - 1) / (most - 1)) for k in range(most)]


def reference_tile(rows: "pd.DataFrame", identity: str) -> Tile:
    files = rows.loc[rows["identity"] == identity, "reference"]
    return Tile(Path(files.iloc[0]), "the training photo") if len(files) else Tile(None)


def _test_photos(scores: "pd.DataFrame", identity: str, *, count: int) -> list[Tile]:
    rows = scores.loc[(scores["method"] == TEST_PHOTO) & (scores["identity"] == identity)]
    tiles = [_note(row, "r_face_sim") for _, row in rows.sort_values("file").head(count).iterrows()]
    return tiles + [Tile(None)] * (count - len(tiles))


def cell_tile(rows: "pd.DataFrame", key: CellKey, *, score: str) -> Tile:
    cell = (rows["method"] == key.method) & (rows["rank"] == key.rank) & (rows["iterations"] == key.iterations)
    found = rows.loc[cell].sort_values("seed")
    return _note(found.iloc[0], score) if len(found) else Tile(None)


def _note(row: Any, score: str) -> Tile:
    value = row[score]
    if value == value:  # not NaN
        return Tile(Path(row["file"]), f"{100 * value:.0f}")
    return Tile(Path(row["file"]), "no face found" if row["face_found"] == 0 else "")


def compose(grid: Grid) -> Image.Image:
    """Paint a grid: header line, row labels, tiles with their notes; missing pictures stay pale."""
    rows = [*([grid.photos] if grid.photos else []), *grid.rows]
    columns = max(len(row.tiles) for row in rows)
    step_x, step_y = TILE + GAP, TILE + 14 + GAP
    sheet = Image.new("RGB", (_ROW_LABEL + columns * step_x, _HEADER + len(rows) * step_y), "white")
    pen = ImageDraw.Draw(sheet)
    header = step_y if grid.photos else 0
    for column, text in enumerate(grid.columns):
        at = (_ROW_LABEL + column * step_x + TILE // 2, header + _HEADER - 4)
        _write(pen, at, text, width=TILE, lines=3, anchor="md")
    for number, row in enumerate(rows):
        top = number * step_y + (0 if row is grid.photos else _HEADER)
        _write(
            pen,
            (2, top + TILE // 2),
            row.label,
            width=_ROW_LABEL - 8,
            lines=3,
            anchor="lm",
            colour=row.colour,
            bold=True,
        )
        for column, tile in enumerate(row.tiles):
            left = _ROW_LABEL + column * step_x
            if tile.file is None or not tile.file.is_file():  # scores may outlive the pictures
                if row is not grid.photos:  # a missing image is a gap, a person has as many photos as they have
                    pen.rectangle((left, top, left + TILE - 1, top + TILE - 1), fill=_PALE)
                continue
            picture = _fit(tile.file)
            sheet.paste(picture, (left + (TILE - picture.width) // 2, top + (TILE - picture.height) // 2))
            pen.text((left + TILE // 2, top + TILE + 1), tile.note, font=_font(9), fill=(110, 110, 110), anchor="ma")
    return sheet


def _fit(file: Path) -> Image.Image:
    with Image.open(file) as image:
        image = image.convert("RGB")
        scale = TILE / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        return image.resize(size, Image.Resampling.LANCZOS)


@cache
def _font(size: int, *, bold: bool = False) -> Any:
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def _write(
    pen: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    *,
    width: int,
    lines: int,
    anchor: str,
    colour: str | tuple[int, int, int] = _INK,
    bold: bool = False,
) -> None:
    """Write text into a column of a width, broken into at most some lines; what does not fit ends in an ellipsis."""
    font = _font(9, bold=bold)
    broken = [""]
    for word in _pieces(text.split(), width=width, font=font):
        longer = f"{broken[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            broken[-1] = longer
        else:
            broken.append(word)
    if len(broken) > lines:
        last = broken[lines - 1]
        while last and font.getlength(f"{last}...") > width:
            last = last[:-1]
        broken = [*broken[: lines - 1], f"{last.rstrip()}..."]
    align = "center" if anchor[0] == "m" else "left"
    pen.multiline_text(at, "\n".join(broken), font=font, fill=colour, anchor=anchor, align=align, spacing=1)


def _pieces(words: Sequence[str], *, width: int, font: Any) -> Iterable[str]:
    """Words no wider than a line; longer ones (identities) are cut."""
    for word in words:
        while font.getlength(word) > width:
            fits = next(n for n in range(len(word) - 1, 0, -1) if font.getlength(word[:n]) <= width)
            yield word[:fits]
            word = word[fits:]
        yield word
