"""The tuning-free rival at work: one look at the reference photo, nothing trained per person."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from metalora.adapters.artifacts import file_sha256, read_tensors, write_tensors
from metalora.adapters.face_adapter import FaceRoute, load_face_adapter
from metalora.core.contracts import Backbone, FaceDetector, TextEmbedding
from metalora.core.errors import UserError
from metalora.evaluation.rivals.rival import Progress, Sitter, file_of, missing
from metalora.people.augment import choose_face
from metalora.people.photos import load_photo
from metalora.perception.face_patches import MiniFacePatches

FORMAT = "metalora-seen-face-1"


class IpAdapter:
    """Face tokens in decoupled cross-attention (`metalora.adapters.face_adapter`); implements `Rival`.

    Args:
        adapter: model.safetensors of a face adapter, trained with this very base.
        face: folder of the face network whose embedding and patches it was trained on.
        scale: what the attention to the face is multiplied with; 0 is the base.
        detector: finds the face in the reference photo; built when first needed.

    Raises:
        UserError: no such adapter, one of another base or of another face network.
    """

    name, iterations, crops = "ip_adapter", 0, None

    def __init__(
        self, backbone: Backbone, *, adapter: Path, face: Path, scale: float, detector: Callable[[], FaceDetector]
    ) -> None:
        if not isinstance(scale, int | float) or isinstance(scale, bool):
            raise UserError("no scale", expected="a number", got=str(scale), key="ip_adapter.scale")
        self._backbone, self._path, self._face, self._scale = backbone, Path(adapter), Path(face), float(scale)
        self._detector = detector
        key = "ip_adapter.adapter"
        self._adapter = load_face_adapter(self._path, backbone_fingerprint=backbone.fingerprint, key=key)
        trained_on = read_tensors(self._path, what="face adapter", key=key)[1].get("face_sha256", "")
        if trained_on != (got := file_sha256(self._face / "model.safetensors")):
            raise UserError(
                "the face adapter was trained on another face network",
                expected=f"sha256 {trained_on[:12]}",
                got=f"{got[:12]} in {face}",
                key="ip_adapter.face",
            )

    def settings(self) -> Mapping[str, Any]:
        """The adapter's content and the scale."""
        return {"adapter": file_sha256(self._path), "scale": self._scale}

    def learn(self, sitters: Sequence[Sitter], *, out: Path, progress: Progress) -> None:
        """Look at each reference photo once; the file holds what was seen."""
        todo = missing(sitters, out=out)
        if not todo:
            return
        eye, detector = MiniFacePatches(self._face), self._detector()
        for done, sitter in enumerate(todo, start=len(sitters) - len(todo) + 1):
            photo = load_photo(sitter.reference, key="benchmark")
            box = choose_face(
                detector.detect([photo])[0], face="largest", name=str(sitter.reference), key="benchmark.root"
            )
            seen = eye.look([photo], [box])
            write_tensors(
                file_of(out, sitter.identity),
                {"embedding": seen.embedding_BE, "patches": seen.patches_BPF.contiguous()},
                metadata={
                    "format": FORMAT,
                    "identity": sitter.identity,
                    **{k: str(v) for k, v in self.settings().items()},
                },
            )
            progress(done, len(sitters))

    @contextmanager
    def applied(self, path: Path) -> Iterator[None]:
        """Every block attends to the face as well."""
        seen, _ = read_tensors(path, what="seen face", key="out")
        backbone, denoiser = self._backbone, self._backbone.denoiser
        dtype = next(denoiser.parameters()).dtype
        adapter = self._adapter.to(backbone.device, dtype)
        with torch.no_grad():
            tokens = adapter.tokens(*(seen[name].to(backbone.device, dtype) for name in ("embedding", "patches")))
        route = FaceRoute(denoiser, adapter, tokens_1TW=tokens, scale=self._scale)
        try:
            yield
        finally:
            route.detach()

    def texts(self, path: Path, prompts: Collection[str], *, class_noun: str) -> dict[str, TextEmbedding] | None:
        """The base's own."""
        return None
