"""Finding faces (MTCNN) and embedding them (facenet-pytorch's Inception-ResNet, or the mini world's network)."""

import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from metalora.core.contracts import Box, DetectedFace, FivePoints, Point
from metalora.core.errors import UserError
from metalora.core.face_net import FACE_SIZE, FaceResNet

FACENET_URL = "https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/20180402-114759-vggface2.pt"
FACENET_SHA256 = "281cebca8662831adb987a874bdcb36e73f5b1c6dc5ee5878f305e985625d99b"
FACENET_SIZE = 160
_KEY = "scorer.embedder.path"


class MtcnnDetector:
    """facenet-pytorch's MTCNN; its weights come with that package.

    Pictures are looked at one by one: batches are no faster on a CPU, and so no face depends on a batch mate.

    Args:
        threshold: faces of a lower probability are not reported.
        min_side: pictures with a shorter side below this many pixels are enlarged first.
        max_side: pictures with a longer side above this many pixels are shrunk first.
    """

    def __init__(
        self, *, threshold: float = 0.9, min_side: int = 160, max_side: int = 1280, device: str = "cpu"
    ) -> None:
        from facenet_pytorch import MTCNN

        self.threshold, self.min_side, self.max_side = threshold, min_side, max_side
        self._mtcnn = MTCNN(keep_all=True, device=torch.device(device))

    def detect(self, images: Sequence[np.ndarray]) -> list[list[DetectedFace]]:
        """Faces in uint8 RGB images [H, W, 3] of any sizes, per image sorted by probability x area, best first."""
        return [self._detect(image) for image in images]

    def _detect(self, image: np.ndarray) -> list[DetectedFace]:
        height, width = image.shape[:2]
        scale = min(max(1.0, self.min_side / min(height, width)), self.max_side / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        picture = Image.fromarray(image)
        if size != picture.size:
            picture = picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
        try:
            boxes, probabilities, points = self._mtcnn.detect(picture, landmarks=True)  # type: ignore[misc]
        except RuntimeError as error:
            if "non-empty list" not in str(error):  # its way of saying that every candidate lies outside the picture
                raise
            return []
        if boxes is None:
            return []
        to_x, to_y = width / size[0], height / size[1]
        faces = [
            DetectedFace(
                Box(float(x0) * to_x, float(y0) * to_y, float(x1) * to_x, float(y1) * to_y),
                float(probability),
                _five([(float(x) * to_x, float(y) * to_y) for x, y in five]),
            )
            for (x0, y0, x1, y1), probability, five in zip(boxes, probabilities, points, strict=True)
            if probability >= self.threshold
        ]
        return sorted(faces, key=lambda face: -face.probability * _area(face.box))


class FacenetEmbedder:
    """InceptionResnetV1 trained on VGGFace2, as the paper scores faces (App. G): 160 px, the library's own cropping.

    Args:
        path: a safetensors file of its weights; None: facenet-pytorch's own download, kept where that library keeps it.
        sha256: of that file; None: not checked, but for the download, whose own is known.

    Raises:
        UserError: no such file, another file, not its weights, or no network to download them.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        sha256: str | None = None,
        device: str = "cpu",
        batch_size: int = 32,
    ) -> None:
        from facenet_pytorch import InceptionResnetV1

        file = Path(path) if path is not None else _facenet_download()
        state = load_weights(file) if path is not None else torch.load(file, weights_only=True)
        if sha256 is not None and (digest := hashlib.sha256(file.read_bytes()).hexdigest()) != sha256:
            raise UserError(f"{file} is another file", expected=f"sha256 {sha256}", got=digest, key=_KEY)
        model = InceptionResnetV1(pretrained=None)
        # the classifier over the training people is not part of the embedding
        load_into(model, {k: v for k, v in state.items() if not k.startswith("logits.")}, source=path or FACENET_URL)
        self._model = model.eval().requires_grad_(False).to(device)
        self._device, self._batch_size = device, batch_size

    def embed(self, images: Sequence[np.ndarray], boxes: Sequence[Box]) -> Tensor:
        """uint8 RGB images and the face box in each to unit embeddings [B, 512]."""
        from facenet_pytorch.models.mtcnn import fixed_image_standardization
        from facenet_pytorch.models.utils.detect_face import extract_face

        crops = [
            fixed_image_standardization(
                extract_face(Image.fromarray(image), np.array([box.x0, box.y0, box.x1, box.y1]), FACENET_SIZE)
            )
            for image, box in zip(images, boxes, strict=True)
        ]
        return embed_batched(self._model, crops, dimension=512, batch_size=self._batch_size, device=self._device)


class MiniFaceEmbedder:
    """The mini world's face embedder: a small ResNet over 64 px crops.

    Args:
        path: a folder with config.json ({class, widths, depths, dimension, crop_margin}) and model.safetensors.

    Raises:
        UserError: no such folder, or not such a model in it.
    """

    def __init__(self, path: str | Path, *, device: str = "cpu", batch_size: int = 256) -> None:
        folder = Path(path)
        expected = "a folder with the config.json and model.safetensors of a FaceResNet"
        try:
            config = json.loads((folder / "config.json").read_bytes())
            if config["class"] != "FaceResNet":
                raise ValueError(f"a {config['class']}")
            self.dimension, self.margin = int(config["dimension"]), float(config["crop_margin"])
            model = FaceResNet(widths=tuple(config["widths"]), depths=tuple(config["depths"]), dimension=self.dimension)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"cannot read the face embedder in {folder}",
                expected=expected,
                got=f"{type(error).__name__}: {error}",
                key=_KEY,
            ) from None
        load_into(model, load_weights(folder / "model.safetensors"), source=folder)
        self.network = model.eval().requires_grad_(False).to(device)
        self._device, self._batch_size = device, batch_size

    def embed(self, images: Sequence[np.ndarray], boxes: Sequence[Box]) -> Tensor:
        """uint8 RGB images and the face box in each to unit embeddings [B, D]."""
        crops = [
            torch.from_numpy(square_crop(image, box, margin=self.margin, size=FACE_SIZE)).permute(2, 0, 1) / 127.5 - 1
            for image, box in zip(images, boxes, strict=True)
        ]
        return embed_batched(
            self.network, crops, dimension=self.dimension, batch_size=self._batch_size, device=self._device
        )


def square_crop(image: np.ndarray, box: Box, *, margin: float, size: int) -> np.ndarray:
    """A square around a face, `margin` times the box's longer side, resized to uint8 [size, size, 3] with antialiasing.

    What lies beyond the picture repeats its edge, as in the embedder's training.
    """
    side = box.long_side * margin
    x0, y0 = (box.x0 + box.x1 - side) / 2, (box.y0 + box.y1 - side) / 2
    height, width = image.shape[:2]
    left, top = max(0, int(np.ceil(-x0))), max(0, int(np.ceil(-y0)))
    right, bottom = max(0, int(np.ceil(x0 + side - width))), max(0, int(np.ceil(y0 + side - height)))
    if left or top or right or bottom:
        image = np.pad(image, ((top, bottom), (left, right), (0, 0)), mode="edge")
    window = (x0 + left, y0 + top, x0 + left + side, y0 + top + side)
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box=window)).copy()


def _five(points: Sequence[Point]) -> FivePoints:
    one, two, three, four, five = points
    return one, two, three, four, five


def _area(box: Box) -> float:
    return (box.x1 - box.x0) * (box.y1 - box.y0)


@torch.no_grad()
def embed_batched(model: nn.Module, crops: Sequence[Tensor], *, dimension: int, batch_size: int, device: str) -> Tensor:
    """Unit embeddings [B, D], float32 on the CPU."""
    rows = [torch.zeros(0, dimension)]
    for start in range(0, len(crops), batch_size):
        embedded = model(torch.stack(list(crops[start : start + batch_size])).to(device)).float()
        rows.append(nn.functional.normalize(embedded, dim=-1).cpu())
    return torch.cat(rows)


def load_weights(path: Path, *, key: str = _KEY) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        UserError: another kind of file, or one that cannot be read.
    """
    expected = "a safetensors file"
    if path.suffix != ".safetensors":
        raise UserError(f"{path} is not read", expected=f"{expected} (pickled weights are never loaded)", key=key)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the weights {path}", expected=expected, got=str(error), key=key) from None


def load_into(model: nn.Module, state: dict[str, Tensor], *, source: str | Path, key: str = _KEY) -> None:
    """Load weights of any precision; every tensor must have its place."""
    try:
        model.load_state_dict(
            {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"the weights {source} do not fit",
            expected=f"the weights of {type(model).__name__}",
            got=reason[:300],
            key=key,
        ) from None


def _facenet_download() -> Path:
    """Where facenet-pytorch keeps its VGGFace2 weights; downloaded when they are not there, and checked."""
    from facenet_pytorch.models.inception_resnet_v1 import get_torch_home

    path = Path(get_torch_home()) / "checkpoints" / FACENET_URL.rsplit("/", 1)[1]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with urllib.request.urlopen(FACENET_URL, timeout=10):  # answers at once where there is no network
                pass
            torch.hub.download_url_to_file(FACENET_URL, str(path), hash_prefix=FACENET_SHA256, progress=False)
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            raise UserError(
                "cannot download the VGGFace2 face embedder",
                expected=f"network access, or {path} copied there from {FACENET_URL}",
                got=str(error),
                key=_KEY,
            ) from None
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != FACENET_SHA256:
        raise UserError(f"{path} is not the published file", expected=f"sha256 {FACENET_SHA256}", got=digest, key=_KEY)
    return path
