"""Sharp portraits of the corpus's people for the face embedder: photos nearly as large as a user's."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from metalora.core.atomic import atomic_path, write_json
from metalora.miniworld.population import CLASS_NOUNS, identity
from metalora.miniworld.renderer import face_boxes, render
from metalora.miniworld.shots import sample_shot

SIDE = 128
_CHUNK = 400


def write_portraits(
    out: Path, *, people: int, photos: int, seed: int, progress: Callable[[int, int], None] | None = None
) -> None:
    """Render `photos` photos of 128 px of each of the corpus's first `people` people; manifest.json comes last.

    The folder has the layout of the corpus; a cut run goes on after its last finished chunk.
    """
    arguments = {"people": people, "photos": photos, "seed": seed}
    manifest = out / "manifest.json"
    if manifest.is_file() and json.loads(manifest.read_text())["arguments"] == arguments:
        return
    out.mkdir(parents=True, exist_ok=True)
    began, pairs = time.monotonic(), []
    for number in range(people):
        person, rng = identity("base", CLASS_NOUNS[number % 2], number // 2), np.random.default_rng([seed, number])
        for _ in range(photos):
            scale = float(np.exp(rng.uniform(np.log(0.75), np.log(1.4))))
            pairs.append((person, sample_shot(rng, fixed={"style": "photo", "scale": scale})))
    order = np.random.default_rng(seed).permutation(len(pairs))
    pairs = [pairs[place] for place in order]
    boxes = face_boxes([person for person, _ in pairs], [shot for _, shot in pairs], SIDE, SIDE)
    columns = {
        "size": f"{SIDE}x{SIDE}",
        "row": np.arange(len(pairs)),
        "identity": [person.key for person, _ in pairs],
        "class_noun": [person.class_noun for person, _ in pairs],
        "style": "photo",
        "shot": [shot.to_json() for _, shot in pairs],
    }
    table = pd.DataFrame(columns | dict(zip(("x0", "y0", "x1", "y1"), np.asarray(boxes, dtype=float).T, strict=True)))
    with atomic_path(out / "meta.parquet") as temporary:
        table.to_parquet(temporary)
    path, marker = out / f"images_{SIDE}x{SIDE}.npy", out / f"done_{SIDE}x{SIDE}.json"
    first = json.loads(marker.read_text())["rows"] if marker.is_file() and path.is_file() else 0
    mode = "r+" if first else "w+"
    images = np.lib.format.open_memmap(path, mode=mode, dtype=np.uint8, shape=(len(pairs), SIDE, SIDE, 3))
    for start in range(first, len(pairs), _CHUNK):
        chunk = pairs[start : start + _CHUNK]
        people_of, shots_of = [person for person, _ in chunk], [shot for _, shot in chunk]
        images[start : start + len(chunk)] = render(people_of, shots_of, height=SIDE, width=SIDE, supersample=1)
        images.flush()
        write_json(marker, {"rows": start + len(chunk)})
        if progress is not None:
            progress(start + len(chunk), len(pairs))
    write_json(manifest, {"arguments": arguments, "seconds": round(time.monotonic() - began, 1)})
