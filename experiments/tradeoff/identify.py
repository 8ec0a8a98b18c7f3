"""Whose face is it: rank-1 identification of generated faces among all people of a benchmark.

Every person stands in the gallery as the mean embedding of the unseen photos, never the one that was trained on.
Legend: N images, K people, D embedding width.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metalora.core.errors import UserError
from metalora.evaluation.embeddings import Embeddings, Picture
from metalora.people.benchmark import Subject
from metalora.people.photos import load_photo

if TYPE_CHECKING:
    import pandas as pd

CELL = ("method", "rank", "iterations", "seed")


def gallery(subjects: Sequence[Subject], embeddings: Embeddings) -> tuple[list[str], np.ndarray]:
    """People and their mean unit embedding [K, D] over the unseen photos in which a face was found.

    Raises:
        UserError: somebody has no such photo.
    """
    photos = iter(embeddings.faces([_picture(path) for subject in subjects for path in subject.test_photos]))
    names, means = [], []
    for subject in subjects:
        found = [x for x in islice(photos, len(subject.test_photos)) if x is not None]
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


def recognised(frame: "pd.DataFrame", subjects: Sequence[Subject], embeddings: Embeddings) -> "pd.DataFrame":
    """Whether a person is recognised by all scored pictures of a cell and seed together: by their mean embedding.

    Args:
        frame: a table of scores whose files are there.
        subjects: everybody in the gallery.

    Returns:
        method, rank, iterations, seed, identity, class_noun, pictures, faces (found in them), recognised (0 or 1).
    """
    import pandas as pd

    names, people_KD = gallery(subjects, embeddings)
    scored = frame[frame["face_found"].notna()]
    scored = scored.assign(face=embeddings.faces([_picture(Path(file)) for file in scored["file"]]))
    rows = []
    for key, own in scored.groupby([*CELL, "identity", "class_noun"], observed=True):
        faces = [x for x in own["face"] if x is not None]
        (who,) = nearest([np.mean(faces, axis=0) if faces else None], names, people_KD)
        rows.append((*key, len(own), len(faces), int(who == key[len(CELL)])))
    return pd.DataFrame(rows, columns=[*CELL, "identity", "class_noun", "pictures", "faces", "recognised"])


def recognised_photos(subjects: Sequence[Subject], embeddings: Embeddings) -> dict[str, Any]:
    """The same for photos, as a bound: the one that was trained on, and each unseen one while it is left out."""
    names, people_KD = gallery(subjects, embeddings)
    reference = embeddings.faces([_picture(subject.reference) for subject in subjects])
    right = [who == s.identity for who, s in zip(nearest(reference, names, people_KD), subjects, strict=True)]
    photos = iter(embeddings.faces([_picture(path) for subject in subjects for path in subject.test_photos]))
    unseen = []
    for place, subject in enumerate(subjects):
        faces = list(islice(photos, len(subject.test_photos)))
        for left_out, face in enumerate(faces):
            rest = [x for k, x in enumerate(faces) if k != left_out and x is not None]
            if not rest:
                continue
            without_KD = people_KD.copy()
            without_KD[place] = np.mean(rest, axis=0) / np.linalg.norm(np.mean(rest, axis=0))
            unseen.append(nearest([face], names, without_KD)[0] == subject.identity)
    return {
        "people": len(subjects),
        "reference_photo": float(np.mean(right)),
        "unseen_photo": float(np.mean(unseen)),
        "unseen_photos": len(unseen),
    }


def _picture(path: Path) -> Picture:
    return Picture.of(path, read=load_photo)
