"""Embeddings of pictures and prompts, kept on disk by content, so that nothing is embedded twice."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metalora.core.atomic import atomic_path
from metalora.core.contracts import ClipScorer, FaceDetector, FaceEmbedder

Progress = Callable[[str, int, int], None]
_SEGMENT = 1024
"""Embeddings per file: what a killed run loses at most."""


@dataclass(frozen=True)
class Scorers:
    """What pictures are scored with. The three functions build a model; none is built for what the cache holds.

    `fingerprint` names the models' weights and settings in the cache (`scorer_fingerprint`).
    """

    detector: Callable[[], FaceDetector]
    embedder: Callable[[], FaceEmbedder]
    clip: Callable[[], ClipScorer]
    fingerprint: str


def scorer_fingerprint(config: Mapping[str, Any]) -> str:
    """sha256 over a scorer's settings, with the content of every file and folder they name in place of its path."""

    def content(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): content(item) for key, item in value.items()}
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
                self._vectors[key] = np.array(vector, dtype=np.float32)  # a copy that may be written, as torch wants

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

    def faces(self, pictures: Sequence["Picture"]) -> list[np.ndarray | None]:
        """Unit embedding of the best face of each picture, None where none is found."""

        def compute(places: list[int]) -> list[np.ndarray]:
            images = [pictures[place].load() for place in places]
            found = self._scorers.detector().detect(images)
            seen = [place for place, faces in enumerate(found) if faces]
            vectors: list[np.ndarray] = [np.zeros(0, dtype=np.float32)] * len(places)
            if seen:
                boxes = [found[place][0].box for place in seen]
                embedded = self._scorers.embedder().embed([images[place] for place in seen], boxes)
                for place, vector in zip(seen, embedded.float().cpu().numpy(), strict=True):
                    vectors[place] = vector
            return vectors

        vectors = self._get("faces", [picture.sha256 for picture in pictures], compute)
        return [vector if vector.size else None for vector in vectors]

    def pictures(self, pictures: Sequence["Picture"]) -> np.ndarray:
        """Unit CLIP embeddings of whole pictures, [N, D]."""

        def compute(places: list[int]) -> np.ndarray:
            embedded = self._scorers.clip().embed_images([pictures[place].load() for place in places])
            return embedded.float().cpu().numpy()

        return np.stack(self._get("clip", [picture.sha256 for picture in pictures], compute))

    def prompts(self, prompts: Sequence[str]) -> np.ndarray:
        """Unit CLIP embeddings of prompts, [N, D]."""

        def compute(places: list[int]) -> np.ndarray:
            return self._scorers.clip().embed_texts([prompts[place] for place in places]).float().cpu().numpy()

        return np.stack(self._get("prompts", [hashlib.sha256(text.encode()).hexdigest() for text in prompts], compute))

    def _get(
        self, kind: str, keys: Sequence[str], compute: Callable[[list[int]], Sequence[np.ndarray] | np.ndarray]
    ) -> list[np.ndarray]:
        store = VectorStore(self._root / f"{kind}-{self._scorers.fingerprint[:16]}")
        return store.get(
            keys,
            compute,
            batch_size=self._batch_size,
            report=lambda done, total: self._progress(f"embed {kind}", done, total),
        )


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
