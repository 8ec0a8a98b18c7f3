"""The models' training pictures: `python -m metalora.miniworld.corpus out=DIR people=3600 photos=20 seed=0`.

Pictures of one size lie in one array; meta.parquet tells who and what is on each. Rows are in an order that makes every
prefix a fair sample, chunks are written in place, and a run that was cut goes on after the last finished chunk.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from metalora.core.atomic import atomic_path, write_json
from metalora.core.errors import UserError
from metalora.miniworld.identity import Identity
from metalora.miniworld.population import CLASS_NOUNS, identity
from metalora.miniworld.renderer import face_boxes, render
from metalora.miniworld.shots import Shot, sample_shot

SIZES = ((64, 64), (72, 56), (56, 72), (88, 48), (48, 88))
"""(height, width); half of the pictures are square."""
_CHUNK = 500
_ARGUMENTS = "arguments.json"
_ATTRIBUTES = ("style", "scene", "shirt", "expression", "light", "pose", "framing", "yaw", "scale")


def plan(*, people: int, photos: int, seed: int) -> dict[tuple[int, int], list[tuple[Identity, Shot]]]:
    """Who is on which picture, by size: every person has `photos` pictures, half of them square, in shuffled order."""
    rows: dict[tuple[int, int], list[tuple[Identity, Shot]]] = {size: [] for size in SIZES}
    for number in range(people):
        person = identity("base", CLASS_NOUNS[number % 2], number // 2)
        rng = np.random.default_rng([seed, number])
        for photo in range(photos):
            size = SIZES[0] if photo % 2 == 0 else SIZES[1 + (photo // 2 + number) % 4]
            rows[size].append((person, sample_shot(rng, fixed={})))
    order = np.random.default_rng([seed, people, photos])
    return {size: [pairs[place] for place in order.permutation(len(pairs))] for size, pairs in rows.items()}


def write_corpus(
    out: Path, *, people: int, photos: int, seed: int, progress: Callable[[str, int, int], None] | None = None
) -> None:
    """Render the corpus into `out`; the same arguments always give the same pixels. manifest.json is written last.

    Args:
        out: directory of the corpus; a part that is there is kept.
        people: persons of the base split, men and women in turn.
        photos: pictures per person.
        seed: of every circumstance.
        progress: called with (what, pictures done, pictures in all).

    Raises:
        UserError: `out` holds a corpus, or part of one, made with other arguments.
    """
    import pandas as pd

    out.mkdir(parents=True, exist_ok=True)
    arguments = {"people": people, "photos": photos, "seed": seed}
    _check_arguments(out, arguments)
    if (out / "manifest.json").is_file():
        return
    write_json(out / _ARGUMENTS, arguments)
    started, rows, records, done, total = time.monotonic(), plan(**arguments), [], 0, people * photos
    for (height, width), pairs in rows.items():
        boxes = face_boxes([person for person, _ in pairs], [shot for _, shot in pairs], height, width)
        for row, ((person, shot), box) in enumerate(zip(pairs, boxes, strict=True)):
            records.append(
                {"size": f"{height}x{width}", "row": row, "identity": person.key, "class_noun": person.class_noun}
                | {name: getattr(shot, name) for name in _ATTRIBUTES}
                | dict(zip(("x0", "y0", "x1", "y1"), map(float, box), strict=True))
                | {"shot": shot.to_json()}
            )
    with atomic_path(out / "meta.parquet") as temporary:
        pd.DataFrame(records).to_parquet(temporary)
    for (height, width), pairs in rows.items():
        images = _open(out / f"images_{height}x{width}.npy", shape=(len(pairs), height, width, 3))
        marker = out / f"done_{height}x{width}.json"
        first = json.loads(marker.read_text())["rows"] if marker.is_file() else 0
        for start in range(0, len(pairs), _CHUNK):
            chunk = pairs[start : start + _CHUNK]
            if start >= first:
                images[start : start + len(chunk)] = render(
                    [person for person, _ in chunk], [shot for _, shot in chunk], height=height, width=width
                )
                images.flush()
                write_json(marker, {"rows": start + len(chunk)})
            done += len(chunk)
            if progress is not None:
                progress("render", done, total)
    write_json(
        out / "manifest.json",
        {"arguments": arguments, "images": total, "seconds": round(time.monotonic() - started, 1)},
    )


def _check_arguments(out: Path, arguments: dict[str, int]) -> None:
    for name in ("manifest.json", _ARGUMENTS):
        if (out / name).is_file():
            found = json.loads((out / name).read_bytes())
            found = found.get("arguments", found)
            if found != arguments:
                raise UserError(
                    f"{out} holds another corpus", expected=json.dumps(arguments), got=json.dumps(found), key="out"
                )


def _open(path: Path, *, shape: tuple[int, ...]) -> np.memmap:
    if path.is_file():
        found = np.lib.format.open_memmap(path, mode="r+")
        if found.shape == shape:
            return found
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)


def main(argv: Sequence[str]) -> int:
    """Write a corpus with progress; `key=value` arguments: out, people, photos, seed."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    options = {"out": "", "people": "3600", "photos": "20", "seed": "0"}
    for word in argv:
        name, _, value = word.partition("=")
        if name not in options or not value or (name != "out" and not value.isdigit()):
            raise UserError("unknown argument", expected="out=DIR people=N photos=M seed=S", got=word, key=name)
        options[name] = value
    if not options["out"]:
        raise UserError("no directory to write to", expected="out=DIR", key="out")
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("render")
        write_corpus(
            Path(options["out"]),
            people=int(options["people"]),
            photos=int(options["photos"]),
            seed=int(options["seed"]),
            progress=lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
        )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(str(error))
