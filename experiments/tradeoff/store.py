"""What is kept of a run: a small score table in results/scores, a line of its cost in results/runs.jsonl, and in
results/people who is recognised by all pictures of a cell together.

Tables have one row per image, without what can be said once: no file, no prompt, no base. That is enough for every
figure, so nothing has to be drawn again to look at the results.
"""

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metalora.core.atomic import atomic_path, write_bytes
from metalora.core.errors import UserError
from metalora.evaluation.score_table import BASE, PHOTO_METHODS

if TYPE_CHECKING:
    import pandas as pd

RESULTS = Path(__file__).parent / "results"
_TEXTS = ("method", "identity", "class_noun", "part", "prompt_id")
_WHOLE = ("rank", "iterations", "seed", "test_photos", "reference_faces")
SCORES = ("clip_t", "clip_i", "face_found", "face_sim", "r_face_sim", "copy_paste", "identified")
"""`identified`: 1 where the nearest of all people of the benchmark is the right one, 0 where it is not or there is no
face, NaN where faces are not scored."""
GALLERY = "gallery.json"
"""How the photos themselves are recognised: the bound of what pictures can reach."""
_ONE_WRITES = threading.Lock()
"""Two runs may end at once; runs.jsonl is read and written whole."""


def scores_path(name: str, *, results: Path = RESULTS) -> Path:
    """Where a run's scores are kept."""
    return results / "scores" / f"{name}.parquet"


def people_path(name: str, *, results: Path = RESULTS) -> Path:
    """Where is kept who of a run is recognised."""
    return results / "people" / f"{name}.parquet"


def write_people(name: str, frame: "pd.DataFrame", *, results: Path = RESULTS) -> None:
    """Keep who of a run is recognised (`identify.recognised`)."""
    with atomic_path(people_path(name, results=results)) as temporary:
        frame.to_parquet(temporary, index=False, compression="zstd")


def write_run(name: str, frame: "pd.DataFrame", cost: dict[str, Any], *, results: Path = RESULTS) -> None:
    """Keep a run's scores and what it cost; the table is written last, as it says that the run is done.

    Raises:
        UserError: the runs that are there were made with other weights of the mini world.
    """
    with _ONE_WRITES:
        check_world(cost["world"], results=results)
        lines = [json.dumps(line) for line in costs(results) if line["name"] != name]
        write_bytes(results / "runs.jsonl", ("\n".join([*lines, json.dumps({"name": name, **cost})]) + "\n").encode())
    kept = frame[[*_TEXTS, *_WHOLE, *SCORES]].astype(dict.fromkeys(_TEXTS, "category"))
    kept = kept.astype(dict.fromkeys(_WHOLE, "int32") | dict.fromkeys(SCORES, "float32"))
    with atomic_path(scores_path(name, results=results)) as temporary:
        kept.to_parquet(temporary, index=False, compression="zstd")


def check_world(world: str, *, results: Path = RESULTS) -> None:
    """Raise UserError when what is there was made with other weights: numbers of two worlds do not mix."""
    if strange := [line for line in costs(results) if line["world"] != world]:
        raise UserError(
            "the results are of other weights of the mini world",
            expected=f"{world[:12]}, or no results",
            got=f"{strange[0]['world'][:12]} in {strange[0]['name']}",
            key=str(results),
        )


def costs(results: Path = RESULTS) -> list[dict[str, Any]]:
    """What the runs cost: a line each, in the order they ended."""
    path = results / "runs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def read_run(name: str, *, results: Path = RESULTS) -> "pd.DataFrame":
    """A run's scores as `evaluation.curves` reads them.

    Raises:
        UserError: it has not been run.
    """
    import pandas as pd

    path = scores_path(name, results=results)
    if not path.is_file():
        raise UserError("a run is missing", expected=str(path), got="nothing", key=name)
    frame = pd.read_parquet(path)
    frame = frame.astype(dict.fromkeys(_TEXTS, object) | dict.fromkeys(_WHOLE, int) | dict.fromkeys(SCORES, float))
    return frame.assign(file=[f"{name}/{place}" for place in range(len(frame))])


def joined(names: Sequence[str], *, results: Path = RESULTS, rename: dict[str, str] | None = None) -> "pd.DataFrame":
    """Several runs as one table: seeds beside each other, photos and base once.

    Args:
        rename: what the methods are called in the joined table.

    Raises:
        UserError: one has not been run.
    """
    import pandas as pd

    frames = [read_run(name, results=results) for name in names]
    rows = pd.concat(frames, ignore_index=True)
    once = rows["method"].isin((*PHOTO_METHODS, BASE))
    key = ["method", "rank", "iterations", "identity", "prompt_id", "seed"]
    rows = rows.loc[~(once & rows.duplicated(key))].reset_index(drop=True)
    return rows.assign(method=rows["method"].replace(rename or {}))
