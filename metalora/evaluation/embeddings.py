"""Embeddings of pictures and prompts, kept on disk by content, so that nothing is embedded twice."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from metalora.core.atomic import atomic_path
from metalora.core.contracts import AlignedFaceEmbedder, ClipScorer, DetectedFace, FaceDetector, FaceEmbedder
from metalora.core.errors import UserError

Progress = Callable[[str, int, int], None]
_SEGMENT = 1024
"""Embeddings per file: what a killed run loses at most."""


@dataclass(frozen=True)
class Scorers:
    """What pictures are scored with. The three functions build a model; none is built for what the cache holds.

    `fingerprint` names the models' weights and settings in the cache (`scorer_fingerprint`); `second` is another face
    embedder with a fingerprint of its own, so that the first one's vectors stay where they are.
    """

    detector: Callable[[], FaceDetector]
    embedder: Callable[[], FaceEmbedder]
    clip: Callable[[], ClipScorer]
    fingerprint: str
    second: Callable[[], FaceEmbedder | AlignedFaceEmbedder] | None = None
    second_fingerprint: str = ""


_LATER = ("second_embedder", "sha256")
"""Settings that came later: while they are null they are as if they were not there, and finished scores stay valid."""


def scorer_fingerprint(config: Mapping[str, Any]) -> str:
    """sha256 over a scorer's settings, with the content of every file and folder they name in place of its path."""

    def content(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(k): content(item) for k, item in value.items() if item is not None or k not in _LATER}
        if isinstance(value, list | tuple):
            return [content(item) for item in value]
        if isinstance(value, str | Path) and str(value) and Path(value).exists():
            path = Path(value)
            files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
            return [[str(file.relative_to(path)), hashlib.sha256(file.read_bytes()).hexdigest()] for file in files]
        return value

    return hashlib.sha256(json.dumps(content(config), sort_keys=True, default=str).encode()).hexdigest()


class VectorStore:
    """Vectors by key in a folder of parquet files. Several processes may add to one folder at once.

    An empty vector is an answer too: no face in this picture.
    """

    def __init__(self, folder: Path) -> None:
        import pandas as pd

        self.folder = folder
        self._vectors: dict[str, np.ndarray] = {}
        for path in sorted(folder.glob("[!.]*.parquet")):
            table = pd.read_parquet(path)
            for key, vector in zip(table["key"], table["vector"], strict=True):
                copy = np.array(vector, dtype=np.float32)  # a copy that may be written, as torch wants
                if np.isfinite(copy).all():
                    self._vectors[key] = copy

    def get(
        self,
        keys: Sequence[str],
        compute: Callable[[list[int]], Sequence[np.ndarray] | np.ndarray],
        *,
        batch_size: int,
        report: Callable[[int, int], None],
    ) -> list[np.ndarray]:
        """The vector of every key, float32.

        Args:
            compute: vectors of the given places of `keys`; called with at most `batch_size` distinct missing keys.
            report: called with (done, total) distinct missing keys.
        """
        first: dict[str, int] = {}
        for place, key in enumerate(keys):
            first.setdefault(key, place)
        missing = [place for key, place in first.items() if key not in self._vectors]
        saved = done = 0
        try:
            for start in range(0, len(missing), batch_size):
                batch = missing[start : start + batch_size]
                for place, vector in zip(batch, compute(batch), strict=True):
                    self._vectors[keys[place]] = np.asarray(vector, dtype=np.float32)
                done = start + len(batch)
                if done - saved >= _SEGMENT:
                    self._save([keys[place] for place in missing[saved:done]])
                    saved = done
                report(done, len(missing))
        finally:  # what was embedded before an interruption is kept
            if done > saved:
                self._save([keys[place] for place in missing[saved:done]])
        return [self._vectors[key] for key in keys]

    def _save(self, keys: list[str]) -> None:
        import pandas as pd

        name = hashlib.sha256("".join(keys).encode()).hexdigest()[:24]
        with atomic_path(self.folder / f"{name}.parquet") as path:
            pd.DataFrame({"key": keys, "vector": [self._vectors[key] for key in keys]}).to_parquet(path, index=False)


class Embeddings:
    """Faces, pictures and prompts through a `VectorStore` each."""

    def __init__(self, scorers: Scorers, *, root: Path, batch_size: int, progress: Progress | None = None) -> None:
        """Open the stores below `root` that belong to these scorers."""
        self._scorers = scorers
        self._root = root
        self._batch_size = batch_size
        self._progress = progress or (lambda stage, done, total: None)

    def faces(self, pictures: Sequence["Picture"], *, second: bool = False) -> list[np.ndarray | None]:
        """Unit embedding of the best face of each picture, None where none is found; `second`: the other embedder's."""
        build = self._scorers.second if second else self._scorers.embedder
        assert build is not None, "no second embedder"

        def compute(places: list[int]) -> list[np.ndarray]:
            images = [pictures[place].load() for place in places]
            found = self._scorers.detector().detect(images)
            seen = [place for place, faces in enumerate(found) if faces]
            vectors: list[np.ndarray] = [np.zeros(0, dtype=np.float32)] * len(places)
            if seen:
                embedded = _embed(build(), [images[place] for place in seen], [found[place][0] for place in seen])
                for place, vector in zip(seen, embedded.float().cpu().numpy(), strict=True):
                    vectors[place] = vector
            return _finite(vectors, what="face", of=[str(pictures[place].path) for place in places])

        kind = f"faces2-{self._scorers.second_fingerprint[:16]}" if second else "faces"
        vectors = self._get(kind, [picture.sha256 for picture in pictures], compute)
        return [vector if vector.size else None for vector in vectors]

    def pictures(self, pictures: Sequence["Picture"]) -> np.ndarray:
        """Unit CLIP embeddings of whole pictures, [N, D]."""

        def compute(places: list[int]) -> np.ndarray:
            embedded = self._scorers.clip().embed_images([pictures[place].load() for place in places])
            of = [str(pictures[place].path) for place in places]
            return np.stack(_finite(list(embedded.float().cpu().numpy()), what="CLIP", of=of))

        return np.stack(self._get("clip", [picture.sha256 for picture in pictures], compute))

    def prompts(self, prompts: Sequence[str]) -> np.ndarray:
        """Unit CLIP embeddings of prompts, [N, D]."""

        def compute(places: list[int]) -> np.ndarray:
            texts = [prompts[place] for place in places]
            embedded = self._scorers.clip().embed_texts(texts).float().cpu().numpy()
            return np.stack(_finite(list(embedded), what="CLIP", of=texts))

        return np.stack(self._get("prompts", [hashlib.sha256(text.encode()).hexdigest() for text in prompts], compute))

    def _get(
        self, kind: str, keys: Sequence[str], compute: Callable[[list[int]], Sequence[np.ndarray] | np.ndarray]
    ) -> list[np.ndarray]:
        store = VectorStore(self._root / (kind if "-" in kind else f"{kind}-{self._scorers.fingerprint[:16]}"))
        return store.get(
            keys,
            compute,
            batch_size=self._batch_size,
            report=lambda done, total: self._progress(f"embed {kind}", done, total),
        )


def _embed(
    embedder: FaceEmbedder | AlignedFaceEmbedder, images: Sequence[np.ndarray], faces: Sequence[DetectedFace]
) -> Tensor:
    if isinstance(embedder, AlignedFaceEmbedder):
        return embedder.embed_faces(images, faces)
    return embedder.embed(images, [face.box for face in faces])


def _finite(vectors: list[np.ndarray], *, what: str, of: Sequence[str]) -> list[np.ndarray]:
    """The vectors, none of which may hold NaN: such a score would vanish from every mean without a word."""
    bad = [name for vector, name in zip(vectors, of, strict=True) if not np.isfinite(vector).all()]
    if bad:
        raise UserError(
            f"the {what} embedding of {bad[0]} is not a number",
            expected="finite vectors from every scorer's weights",
            got=f"NaN for {len(bad)} of a batch of {len(vectors)}",
            key="scorer",
        )
    return vectors


@dataclass(frozen=True)
class Picture:
    """An image file and the sha256 of its bytes."""

    path: Path
    sha256: str
    read: Callable[[Path], np.ndarray]

    @classmethod
    def of(cls, path: Path, *, read: Callable[[Path], np.ndarray]) -> "Picture":
        """Hash a file; `read` turns it into uint8 RGB when it has to be embedded."""
        return cls(path, hashlib.sha256(path.read_bytes()).hexdigest(), read)

    def load(self) -> np.ndarray:
        """uint8 RGB [H, W, 3]."""
        return self.read(self.path)
