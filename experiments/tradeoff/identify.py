"""Whose face is it: rank-1 identification of generated faces among all people of a benchmark.

Every person stands in the gallery as the mean embedding of the unseen photos, never the one that was trained on.
Legend: N images, K people, D embedding width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from metalora.core.errors import UserError
from metalora.evaluation.embeddings import Embeddings, Picture
from metalora.people.benchmark import Subject
from metalora.people.photos import load_photo

if TYPE_CHECKING:
    import pandas as pd


def gallery(subjects: Sequence[Subject], embeddings: Embeddings) -> tuple[list[str], np.ndarray]:
    """People and their mean unit embedding [K, D] over the unseen photos in which a face was found.

    Raises:
        UserError: somebody has no such photo.
    """
    names, means = [], []
    for subject in subjects:
        found = [x for x in embeddings.faces([_picture(path) for path in subject.test_photos]) if x is not None]
        if not found:
            raise UserError("no unseen photo with a face", got=subject.identity, key="benchmark.root")
        names.append(subject.identity)
        means.append(np.mean(found, axis=0))
    means_KD = np.stack(means)
    return names, means_KD / np.linalg.norm(means_KD, axis=1, keepdims=True)


def nearest(faces: Sequence[np.ndarray | None], names: Sequence[str], people_KD: np.ndarray) -> list[str | None]:
    """Who each face is nearest to by cosine; None where there is no face."""
    return [None if face is None else names[int(np.argmax(people_KD @ face))] for face in faces]


def identified(frame: "pd.DataFrame", subjects: Sequence[Subject], embeddings: Embeddings) -> "pd.Series":
    """1 where a picture's face is nearest to its own person, 0 where not or where there is none; NaN: not scored.

    Args:
        frame: a table of scores whose files are there.
        subjects: everybody in the gallery.
    """
    import pandas as pd

    names, people_KD = gallery(subjects, embeddings)
    scored = frame["face_found"].notna()
    rows = frame.loc[scored]
    found = nearest(embeddings.faces([_picture(Path(file)) for file in rows["file"]]), names, people_KD)
    right = [float(who == wanted) for who, wanted in zip(found, rows["identity"], strict=True)]
    return pd.Series(right, index=rows.index, dtype=float).reindex(frame.index)


def _picture(path: Path) -> Picture:
    return Picture.of(path, read=load_photo)
