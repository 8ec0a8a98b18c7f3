"""The second face embedder: aligned by five points, from weights in the published layout."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_faces import portrait  # noqa: F401  (a fixture)

from metalora.core.contracts import AlignedFaceEmbedder, Box, DetectedFace
from metalora.core.errors import UserError
from metalora.core.iresnet import IResNet
from metalora.perception.arcface import TEMPLATE, ArcFaceEmbedder, aligned
from metalora.perception.faces import MtcnnDetector


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("arcface") / "r.safetensors"
    state = IResNet(depths=(1, 2, 1, 1)).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return path


def test_names_and_shapes_are_the_published_ones() -> None:
    """As insightface's arcface_torch writes them."""
    with torch.device("meta"):
        state = IResNet(depths=(3, 4, 14, 3)).state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert shapes["conv1.weight"] == (64, 3, 3, 3) and shapes["prelu.weight"] == (64,)
    assert shapes["layer1.0.downsample.0.weight"] == (64, 64, 1, 1) and "layer1.1.downsample.0.weight" not in shapes
    assert shapes["layer3.13.conv2.weight"] == (256, 256, 3, 3) and shapes["layer4.0.bn3.running_var"] == (512,)
    assert shapes["fc.weight"] == (512, 25088) and shapes["features.bias"] == (512,)
    count = sum(value.numel() for name, value in state.items() if "running" not in name and "tracked" not in name)
    assert round(count / 1e6, 2) == 43.59  # millions, as its authors state for r50


def test_the_points_come_to_lie_on_the_template() -> None:
    image = np.zeros((400, 300, 3), np.uint8)
    angle, scale, shift = np.radians(25), 1.7, np.array([60.0, 90.0])
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = TEMPLATE @ turn.T + shift
    y, x = np.mgrid[0:400, 0:300]
    for px, py in points:
        image = np.maximum(image, (255 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / 18)).astype(np.uint8)[..., None])
    face = aligned(image, tuple(map(tuple, points)))[..., 0].astype(float)
    assert face.shape == (112, 112)
    for tx, ty in TEMPLATE:
        window = face[round(ty) - 6 : round(ty) + 7, round(tx) - 6 : round(tx) + 7]
        wy, wx = np.mgrid[round(ty) - 6 : round(ty) + 7, round(tx) - 6 : round(tx) + 7]
        found = (window * wx).sum() / window.sum(), (window * wy).sum() / window.sum()
        assert found == pytest.approx((tx, ty), abs=0.15)


def test_a_turned_and_shrunk_photo_has_the_same_embedding(portrait, weights: Path) -> None:  # noqa: F811
    embedder = ArcFaceEmbedder(weights, batch_size=2)
    assert isinstance(embedder, AlignedFaceEmbedder)
    (faces,) = MtcnnDetector().detect([np.asarray(portrait)])
    points = faces[0].points
    assert points is not None
    turned = np.asarray(portrait.rotate(90, expand=True))
    turned_points = tuple((y, portrait.width - 1 - x) for x, y in points)
    box = Box(0, 0, 1, 1)
    images = [np.asarray(portrait), turned, np.asarray(portrait)]
    shifted = tuple((x + 25, y) for x, y in points)
    found = embedder.embed_faces(images, [DetectedFace(box, 1.0, p) for p in (points, turned_points, shifted)])
    assert found.shape == (3, 512) and torch.allclose(found.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(found[0], found[1], atol=1e-3)
    assert (found[0] @ found[1]) > (found[0] @ found[2]) + 1e-4
    alone = embedder.embed_faces(images[:1], [DetectedFace(box, 1.0, points)])
    assert torch.allclose(found[:1], alone, atol=1e-6)


def test_pixels_are_scaled_to_minus_one_and_one(weights: Path) -> None:
    embedder = ArcFaceEmbedder(weights)
    image = np.random.default_rng(0).integers(0, 255, (112, 112, 3), dtype=np.uint8)
    points = tuple(map(tuple, TEMPLATE))  # nothing to align
    expected_input = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        expected = torch.nn.functional.normalize(embedder._model(expected_input))
    found = embedder.embed_faces([image], [DetectedFace(Box(0, 0, 112, 112), 1.0, points)])
    assert torch.allclose(found, expected, atol=1e-5)


def test_bad_weights_are_one_clear_line(weights: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    ArcFaceEmbedder(weights, sha256=digest)
    with pytest.raises(UserError, match=rf"is another file; expected sha256 {'0' * 64}; got {digest}"):
        ArcFaceEmbedder(weights, sha256="0" * 64)
    with pytest.raises(UserError, match=r"pickled weights are never loaded.*key: scorer\.second_embedder\.path"):
        ArcFaceEmbedder(tmp_path / "backbone.pth")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="do not fit; expected the weights of an IResNet"):
        ArcFaceEmbedder(tmp_path / "other.safetensors")
    embedder = ArcFaceEmbedder(weights)
    with pytest.raises(UserError, match="no five points"):
        embedder.embed_faces([np.zeros((9, 9, 3), np.uint8)], [DetectedFace(Box(0, 0, 9, 9), 1.0)])


def test_the_aligned_picture_is_upright(portrait: Image.Image) -> None:  # noqa: F811
    (faces,) = MtcnnDetector().detect([np.asarray(portrait)])
    assert faces[0].points is not None
    face = Image.fromarray(aligned(np.asarray(portrait), faces[0].points))
    again = MtcnnDetector(threshold=0.5).detect([np.asarray(face.resize((336, 336)))])[0][0].points
    assert again is not None
    eyes_and_mouth = [0, 1, 3, 4]  # her nose is shorter than the template's
    assert np.abs(np.array(again) / 3 - TEMPLATE)[eyes_and_mouth].max() < 9
