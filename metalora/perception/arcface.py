"""A second face embedder of another architecture: ArcFace's residual nets on aligned faces, from a local file.

For `scorer.second_embedder`: methods that were conditioned on one embedder are not favoured by scores of another.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metalora.core.contracts import DetectedFace, FivePoints
from metalora.core.errors import UserError
from metalora.core.iresnet import SIDE, IResNet
from metalora.perception.faces import embed_batched, load_into, load_weights

TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Where the five points lie on an aligned face, in its 112 pixels."""
_KEY = "scorer.second_embedder.path"


class ArcFaceEmbedder:
    """IResNet (r18 to r100) with the parameter names of insightface's arcface_torch.

    Args:
        path: a safetensors file of its weights; the depth is read off its names.
        sha256: of that file; None: not checked.

    Raises:
        UserError: no such file, another file, or not its weights.
    """

    def __init__(
        self, path: str | Path, *, sha256: str | None = None, device: str = "cpu", batch_size: int = 32
    ) -> None:
        state = load_weights(Path(path), key=_KEY)
        if sha256 is not None and (digest := hashlib.sha256(Path(path).read_bytes()).hexdigest()) != sha256:
            raise UserError(f"{path} is another file", expected=f"sha256 {sha256}", got=digest, key=_KEY)
        model = IResNet(depths=_depths(state, path=Path(path)))
        load_into(model, dict(state), source=path, key=_KEY)
        self._model = model.eval().requires_grad_(False).to(device)
        self._device, self._batch_size = device, batch_size

    def embed_faces(self, images: Sequence[np.ndarray], faces: Sequence[DetectedFace]) -> Tensor:
        """uint8 RGB images and the face in each, with its five points, to unit embeddings [B, 512]."""
        crops = []
        for image, face in zip(images, faces, strict=True):
            if face.points is None:
                raise UserError(
                    "the detector finds no five points", expected="one that does: MtcnnDetector", key="scorer.detector"
                )
            crops.append(torch.from_numpy(aligned(image, face.points)).permute(2, 0, 1) / 127.5 - 1)
        return embed_batched(self._model, crops, dimension=512, batch_size=self._batch_size, device=self._device)


def aligned(image: np.ndarray, points: FivePoints) -> np.ndarray:
    """The face turned, scaled and shifted so that its points lie on the template as well as they can; [112, 112, 3]."""
    template_52, points_52 = TEMPLATE, np.asarray(points, dtype=np.float64)
    a_52, b_52 = template_52 - template_52.mean(0), points_52 - points_52.mean(0)
    # Least squares over similarities, from the aligned face to the picture: b = [[p, -q], [q, p]] a.
    norm = (a_52**2).sum()
    p = float((a_52 * b_52).sum() / norm)
    q = float((a_52[:, 0] * b_52[:, 1] - a_52[:, 1] * b_52[:, 0]).sum() / norm)
    x, y = points_52.mean(0) - np.array([[p, -q], [q, p]]) @ template_52.mean(0)
    # Points and template count from the middle of the first pixel, Pillow from its corner.
    shift_x, shift_y = x + (1 - p + q) / 2, y + (1 - p - q) / 2
    picture = Image.fromarray(image)
    made = picture.transform(
        (SIDE, SIDE), Image.Transform.AFFINE, (p, -q, shift_x, q, p, shift_y), Image.Resampling.BILINEAR
    )
    return np.asarray(made).copy()


def _depths(state: Mapping[str, Tensor], *, path: Path) -> tuple[int, ...]:
    found = {match.groups() for name in state if (match := re.match(r"layer([1-4])\.(\d+)\.", name))}
    depths = tuple(sum(stage == str(k) for stage, _ in found) for k in (1, 2, 3, 4))
    if not all(depths):
        raise UserError(
            f"the weights {path} do not fit",
            expected="the weights of an IResNet: conv1, bn1, prelu, layer1 to layer4, bn2, fc, features",
            got=", ".join(sorted(state)[:3]) or "nothing",
            key=_KEY,
        )
    return depths
