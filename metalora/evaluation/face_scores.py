"""Faces of pictures and of the benchmark's photos, and what their embeddings score (App. G, Algorithm 3)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metalora.core import metrics
from metalora.core.contracts import GeneratedImage
from metalora.core.copy_paste import copy_paste
from metalora.evaluation.embeddings import Embeddings, Picture
from metalora.evaluation.score_table import REFERENCE, STRANGER, TEST_PHOTO, Subject, unscored_row
from metalora.people.copies import refuse_copies
from metalora.people.photos import load_photo


class PhotoFaces:
    """The embedded faces of the benchmark's photos.

    Raises:
        UserError: a test photo is the reference once more, or a photo cannot be read.
    """

    def __init__(self, subjects: Sequence[Subject], embeddings: Embeddings, *, second: bool = False) -> None:
        self.subjects, self.second = list(subjects), second
        for subject in [] if second else subjects:
            refuse_copies(subject.identity, reference=subject.reference, test_photos=subject.test_photos)
        files = [path for subject in subjects for path in (subject.reference, *subject.test_photos)]
        pictures = [Picture.of(path, read=lambda path: load_photo(path, key="benchmark.root")) for path in files]
        self._of = dict(zip(files, embeddings.faces(pictures, second=second), strict=True)) if files else {}

    def reference(self, subject: Subject) -> np.ndarray | None:
        """The reference photo's face."""
        return self._of[subject.reference]

    def tests(self, subject: Subject, *, without: Path | None = None) -> list[np.ndarray]:
        """The test photos' faces, those without a face left out."""
        faces = [self._of[path] for path in subject.test_photos if path != without]
        return [face for face in faces if face is not None]

    def photo_rows(self) -> list[dict[str, Any]]:
        """Ceilings and floor: real photos scored as if they were generated (Algorithm 3)."""
        rows = []
        for subject in self.subjects:
            rows.append(self._photo_row(REFERENCE, subject, subject.reference))
            rows += [self._photo_row(TEST_PHOTO, subject, path) for path in subject.test_photos]
            others = [s for s in self.subjects if s.class_noun == subject.class_noun and s.identity != subject.identity]
            rows += [self._photo_row(STRANGER, subject, other.reference) for other in others]
        return rows

    def _photo_row(self, method: str, subject: Subject, path: Path) -> dict[str, Any]:
        record = GeneratedImage(
            file="",
            method=method,
            identity=subject.identity,
            class_noun=subject.class_noun,
            prompt_id=f"{path.parent.name}/{path.name}",
            prompt="",
            seed=0,
            rank=0,
            iterations=0,
            lora="",
            lora_sha256="",
            base_model="",
            steps=0,
            guidance=0.0,
            size=(0, 0),
        )
        face, tests = self._of[path], self.tests(subject, without=path)
        scores = face_scores(face, reference=None if method == REFERENCE else self.reference(subject), tests=tests)
        compared = [other for other in subject.test_photos if other != path]
        return unscored_row(record, path, subject) | scores | {"test_photos_missed": len(compared) - len(tests)}


def face_scores(
    face: np.ndarray | None, *, reference: np.ndarray | None, tests: Sequence[np.ndarray]
) -> dict[str, Any]:
    """FaceSim, R-FaceSim, copy-paste score and whether there was a face, for one picture of one identity."""
    scores = {
        "face_found": float(face is not None),
        "face_sim": np.nan,
        "r_face_sim": np.nan,
        "copy_paste": np.nan,
        "test_photos": len(tests),
        "reference_faces": int(reference is not None),
    }
    if face is not None:
        face_1D = torch.from_numpy(face)[None]
        if reference is not None:
            scores["face_sim"] = float(metrics.cosine(face_1D, torch.from_numpy(reference)[None]))
        if tests:
            tests_TD = torch.from_numpy(np.stack(tests))
            scores["r_face_sim"] = float(metrics.r_face_sim(face_1D, tests_TD))
            if reference is not None:
                photo_D = torch.from_numpy(reference)
                scores["copy_paste"] = float(copy_paste(face_1D, reference_D=photo_D, test_photos_TD=tests_TD))
    return scores
