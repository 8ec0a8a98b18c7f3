"""What a tuning-free adapter sees of a face: the mini embedder's embedding and the feature map half-way to it.

The map keeps place: pose, expression and light are in it, as in the image features that IP-Adapter-Plus or PuLID read.

Shape legend: B batch, E embedding, P patches, F patch features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from metalora.core.contracts import Box
from metalora.core.face_net import FACE_SIZE, FaceResNet
from metalora.perception.faces import MiniFaceEmbedder, square_crop

PATCH_SIDE = 8
"""Patches along each side of a crop."""


@dataclass(frozen=True)
class SeenFaces:
    """Unit embeddings and patch features (each of unit variance) of face crops."""

    embedding_BE: Tensor
    patches_BPF: Tensor


class MiniFacePatches:
    """Embedding and patches from one pass of the shipped face embedder.

    Args:
        path: its folder, as for `MiniFaceEmbedder`.
    """

    def __init__(self, path: str | Path, *, batch_size: int = 100) -> None:
        self.embedder = MiniFaceEmbedder(path)
        self._batch_size = batch_size

    @torch.no_grad()
    def look(self, images: Sequence[np.ndarray], boxes: Sequence[Box]) -> SeenFaces:
        """uint8 RGB images and the face box in each to what an adapter sees; float32 on the CPU."""
        margin, network = self.embedder.margin, self.embedder.network
        crops = [
            torch.from_numpy(square_crop(image, box, margin=margin, size=FACE_SIZE)).permute(2, 0, 1) / 127.5 - 1
            for image, box in zip(images, boxes, strict=True)
        ]
        seen = [
            _look(network, torch.stack(crops[k : k + self._batch_size])) for k in range(0, len(crops), self._batch_size)
        ]
        return SeenFaces(torch.cat([e for e, _ in seen]), torch.cat([p for _, p in seen]))


def _look(network: FaceResNet, crops_B3HW: Tensor) -> tuple[Tensor, Tensor]:
    x, patches = network.stem(crops_B3HW), None
    for block in network.blocks:
        x = block(x)
        if x.shape[-1] == PATCH_SIDE:
            patches = x  # the last block at this size
    assert patches is not None, "the embedder has no feature map of this size"
    embedding = functional.normalize(network.head(x), dim=-1)
    patches_BPF = patches.flatten(2).transpose(1, 2)
    return embedding, functional.layer_norm(patches_BPF, patches_BPF.shape[-1:])
