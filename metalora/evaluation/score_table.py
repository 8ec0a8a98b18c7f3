"""A table of scores: which columns a row has, and how it lies on the disk.

One row per image and identity; real photos have rows too, so that ceilings and floor stand beside what they bound.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from metalora.core.atomic import atomic_path
from metalora.core.contracts import GeneratedImage
from metalora.core.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

BASE = "base"
REFERENCE = "photo_reference"
"""The reference photo scored as if it were generated: what a perfect copy of one photo reaches."""
TEST_PHOTO = "photo_test"
"""Each test photo against the person's other ones: what real photos reach."""
STRANGER = "photo_stranger"
"""Other people's references of the same class: what no likeness at all reaches."""
PHOTO_METHODS = (REFERENCE, TEST_PHOTO, STRANGER)

BASE_SETTING = ("base_model", "steps", "guidance")
"""What tells one untouched base from another; a method's images are of one base whatever these are."""
KEY = ("method", "rank", "iterations", "identity", "prompt_id", "seed")
"""What names a row, the base's together with `BASE_SETTING`; photos have their file in `prompt_id`'s place."""
_DRAWN = ("lora_sha256", "weights_sha256", "base_model", "steps", "guidance", "height", "width")
"""What an image was drawn with, where a table tells it."""
_FILES = ("file", "reference")
WHOLE_NUMBERS = ("rank", "iterations", "seed", "test_photos", "test_photos_missed", "reference_faces")
SECOND = "_second"
"""Ends the columns that the second face embedder makes."""


class Subject(Protocol):
    """One person of a benchmark."""

    @property
    def identity(self) -> str: ...
    @property
    def class_noun(self) -> str: ...
    @property
    def reference(self) -> Path: ...
    @property
    def test_photos(self) -> tuple[Path, ...]: ...
    @property
    def part(self) -> str: ...


def base_setting(record: GeneratedImage) -> tuple[str, int, float]:
    """Which untouched base an image is of, or stands on."""
    return record.base_model, record.steps, float(record.guidance)


def base_name(record: GeneratedImage) -> str:
    """`base_setting` in words."""
    return name_of_base(*base_setting(record))


def name_of_base(base_model: str, steps: int, guidance: float) -> str:
    """An untouched base in words."""
    return f"{base_model}, {steps} steps, guidance {guidance:g}"


def unscored_row(record: GeneratedImage, path: Path, subject: Subject) -> dict[str, Any]:
    """A row of a table before anything is measured: scores are NaN."""
    return {
        "file": str(path),
        "method": record.method,
        "identity": subject.identity,
        "class_noun": subject.class_noun,
        "part": subject.part,
        "prompt_id": record.prompt_id,
        "prompt": record.prompt,
        "seed": record.seed,
        "rank": record.rank,
        "iterations": record.iterations,
        "lora_sha256": record.lora_sha256,
        "weights_sha256": record.weights_sha256,
        "base_model": record.base_model,
        "steps": record.steps,
        "guidance": record.guidance,
        "height": record.size[0],
        "width": record.size[1],
        "clip_t": np.nan,
        "clip_i": np.nan,
        "face_found": np.nan,
        "face_sim": np.nan,
        "r_face_sim": np.nan,
        "copy_paste": np.nan,
        "test_photos": 0,
        "test_photos_missed": 0,
        "reference_faces": 0,
        "reference": str(subject.reference),
    }


def write_scores(path: Path, frame: "pd.DataFrame") -> None:
    """Write scores.parquet atomically; files are named relative to its folder, so that the outputs can be moved."""
    folder = path.parent.resolve()
    stored = frame.assign(**{column: [_relative(Path(f), folder) for f in frame[column]] for column in _FILES})
    with atomic_path(path) as temporary:
        stored.to_parquet(temporary, index=False)


def _relative(file: Path, folder: Path) -> str:
    return Path(os.path.relpath(file.resolve(), folder)).as_posix()


def read_scores(paths: Sequence[Path]) -> "pd.DataFrame":
    """Read and join score tables; a row that several of them hold counts once, and of several in one table the last.
    Bases of different models, steps or guidance are different rows.

    Raises:
        UserError: there is no table, one is not a table of scores, or two hold a row whose images were drawn with
            different things.
    """
    import pandas as pd

    frames = []
    for path in paths:
        try:
            frame = pd.read_parquet(path)
            folder = path.parent.resolve()
            files = {column: [os.path.normpath(folder / file) for file in frame[column]] for column in _FILES}
            frames.append(frame.assign(**files))
        except (OSError, ValueError, KeyError) as error:
            raise UserError("cannot read scores", expected="a scores.parquet", got=str(error), key="scores") from error
    if not frames:
        raise UserError("there are no scores", expected="at least one scores.parquet", key="scores")
    rows = pd.concat(frames, ignore_index=True)
    names = rows[list(KEY)].assign(base=bases_of(rows))
    tables = pd.Series(np.repeat([str(path) for path in paths], [len(frame) for frame in frames]))
    _refuse_different_images(rows, names, tables)
    return rows.loc[~names.duplicated(keep="last")].reset_index(drop=True)


def _refuse_different_images(rows: "pd.DataFrame", names: "pd.DataFrame", tables: "pd.Series") -> None:
    """Raise UserError when a row of one table was drawn with something else than the same row of a later one."""
    once = names.loc[~names.assign(table=tables).duplicated(keep="last")]
    shared = once.loc[once.duplicated(keep=False)]
    for column in [name for name in _DRAWN if name in rows]:
        told = rows.loc[shared.index, column].dropna().replace("", "none")
        last = told.groupby([shared.loc[told.index, name] for name in shared]).transform("last")
        if not (other := told.ne(last) & last.notna()).any():
            continue
        first = other.idxmax()
        second = told.index[(shared.loc[told.index] == shared.loc[first]).all(axis=1)][-1]
        row = rows.loc[first]
        cell = f"{row['method']} rank {row['rank']} at {row['iterations']}, {row['identity']}, {row['prompt_id']}"
        raise UserError(
            f"two tables hold different images of {cell}, seed {row['seed']}",
            expected="the same LoRA, weights, base model, steps, guidance and size, or the table that is meant alone",
            got=f"{column} {told[first]} in {tables[first]}, {told[second]} in {tables[second]}",
            key="scores",
        )


def bases_of(scores: "pd.DataFrame") -> "pd.Series":
    """The name of each row's base, empty for all rows but the untouched bases' own.

    A table without the columns has one base.
    """
    import pandas as pd

    names = pd.Series("", index=scores.index, dtype=object)
    if all(column in scores for column in BASE_SETTING):
        own = scores["method"] == BASE
        settings = scores.loc[own, list(BASE_SETTING)].fillna({"base_model": "", "steps": 0, "guidance": 0.0})
        found = {setting: name_of_base(*setting) for setting in settings.drop_duplicates().itertuples(index=False)}
        names.loc[own] = [found[setting] for setting in settings.itertuples(index=False)]
    return names
