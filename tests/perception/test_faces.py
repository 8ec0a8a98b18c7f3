"""Faces are found and embedded, whatever the size of the picture and whoever stands beside it in a batch."""

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from metalora.core.contracts import Box, FaceEmbedder
from metalora.core.errors import UserError
from metalora.core.face_net import FaceResNet
from metalora.perception import faces
from metalora.perception.faces import FacenetEmbedder, MiniFaceEmbedder, MtcnnDetector, square_crop

SIZES = {"widths": (8, 8), "depths": (1, 1), "dimension": 16}


@pytest.fixture(scope="module")
def portrait() -> Image.Image:
    """The public-domain portrait of Eileen Collins that comes with scikit-image; her face is near (223, 115)."""
    spec = importlib.util.find_spec("skimage")
    assert spec is not None and spec.origin is not None
    return Image.open(Path(spec.origin).parent / "data" / "astronaut.png").convert("RGB")


@pytest.fixture(scope="module")
def detector() -> MtcnnDetector:
    torch.set_num_threads(1)
    return MtcnnDetector()


def centre(box: Box) -> tuple[float, float]:
    return (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2


@pytest.mark.parametrize("size", [(512, 512), (200, 200), (96, 96), (1600, 1600), (512, 300)])
def test_the_box_is_in_pixels_of_the_picture_that_was_given(
    portrait: Image.Image, detector: MtcnnDetector, size: tuple[int, int]
) -> None:
    width, height = size
    image = np.asarray(portrait.resize((width, width)).crop((0, 0, width, height)))
    (found,) = detector.detect([image])
    assert len(found) == 1 and found[0].probability > 0.9
    x, y = centre(found[0].box)
    assert x / width == pytest.approx(223 / 512, abs=0.02)
    assert y / width == pytest.approx(115 / 512, abs=0.02)
    assert found[0].box.long_side / width == pytest.approx(110 / 512, rel=0.15)


def test_a_face_does_not_depend_on_its_batch(portrait: Image.Image, detector: MtcnnDetector) -> None:
    images = [
        np.asarray(portrait.crop((x, 0, x + 300, 280)).resize(size))
        for x, size in ((60, (256, 256)), (80, (256, 256)), (100, (160, 200)), (20, (64, 64)))
    ]
    together = detector.detect(images)
    assert together == [detector.detect([image])[0] for image in images]
    assert together == detector.detect(images[::-1])[::-1]
    assert all(len(found) == 1 for found in together[:3])


def test_the_best_face_comes_first(portrait: Image.Image, detector: MtcnnDetector) -> None:
    pair = Image.new("RGB", (700, 500), (90, 90, 90))
    face = portrait.crop((130, 20, 330, 240))
    pair.paste(face.resize((120, 132)), (40, 40))
    pair.paste(face.resize((300, 330)), (350, 100))
    (found,) = detector.detect([np.asarray(pair)])
    assert len(found) == 2
    assert found[0].box.long_side > 2 * found[1].box.long_side
    assert centre(found[0].box)[0] > 350 > centre(found[1].box)[0]


def test_probability_counts_as_much_as_area(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = MtcnnDetector()
    boxes = np.array([[0, 0, 100, 100], [100, 0, 196, 100], [0, 100, 20, 120]])
    found = (boxes, np.array([0.91, 0.99, 0.85]), np.zeros((3, 5, 2)))
    monkeypatch.setattr(detector._mtcnn, "detect", lambda _, landmarks: found)
    (found,) = detector.detect([np.zeros((200, 200, 3), np.uint8)])
    assert [face.probability for face in found] == [0.99, 0.91]  # 9504 before 9100; 0.85 is below the threshold


def test_pictures_without_a_face(detector: MtcnnDetector) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    assert detector.detect([np.zeros((200, 160, 3), np.uint8), noise]) == [[], []]
    assert detector.detect([]) == []


def test_the_threshold_is_a_probability(portrait: Image.Image) -> None:
    image = np.asarray(portrait)
    (found,) = MtcnnDetector(threshold=0.5).detect([image])
    best = max(face.probability for face in found)
    assert MtcnnDetector(threshold=best + 1e-7).detect([image]) == [[]]


def test_candidates_outside_the_picture_are_no_face_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = MtcnnDetector()

    def fail(message: str):
        def detect(_: object, *, landmarks: bool) -> None:
            raise RuntimeError(message)

        return detect

    monkeypatch.setattr(detector._mtcnn, "detect", fail("torch.cat(): expected a non-empty list of Tensors"))
    assert detector.detect([np.zeros((160, 160, 3), np.uint8)]) == [[]]
    monkeypatch.setattr(detector._mtcnn, "detect", fail("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        detector.detect([np.zeros((160, 160, 3), np.uint8)])


def test_the_square_crop_is_centred_and_repeats_the_edge() -> None:
    y, x = np.mgrid[0:100, 0:120]
    image = np.stack([2 * x, 2 * y, 0 * x], axis=2).astype(np.uint8)
    crop = square_crop(image, Box(40, 30, 60, 70), margin=1.5, size=64).astype(float)
    assert crop.shape == (64, 64, 3)
    assert crop[31:33, 31:33, 0].mean() == pytest.approx(2 * 49.5, abs=1.5)
    assert crop[31:33, 31:33, 1].mean() == pytest.approx(2 * 49.5, abs=1.5)
    assert crop[32, 63, 0] - crop[32, 0, 0] == pytest.approx(2 * 60, abs=4)  # 1.5 x the longer side of 40
    outside = square_crop(image, Box(-20, -20, 20, 20), margin=1.0, size=64)
    assert outside[:30, :30].max() <= 1
    assert outside[63, 63, 0] == pytest.approx(2 * 19.5, abs=2)
    beyond = square_crop(image, Box(100, 80, 140, 120), margin=1.0, size=64)
    assert beyond[-1, -1, 0] == 2 * 119 and beyond[-1, -1, 1] == 2 * 99


@pytest.fixture
def mini_folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = FaceResNet(**SIZES)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"class": "FaceResNet", "crop_margin": 1.2, **SIZES}))
    return tmp_path


def test_the_mini_embedder_looks_at_the_face_alone(mini_folder: Path) -> None:
    embedder: FaceEmbedder = MiniFaceEmbedder(mini_folder, batch_size=2)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (80, 60 + 10 * n, 3), dtype=np.uint8) for n in range(5)]
    boxes = [Box(15, 20, 40 + n, 52) for n in range(5)]
    together = embedder.embed(images, boxes)
    assert together.shape == (5, 16) and together.dtype == torch.float32 and not together.is_inference()
    assert torch.allclose(together.norm(dim=-1), torch.ones(5), atol=1e-6)
    alone = torch.cat([embedder.embed([image], [box]) for image, box in zip(images, boxes, strict=True)])
    assert torch.allclose(together, alone, atol=1e-5)
    changed = images[0].copy()
    changed[60:], changed[:, 52:] = 0, 0  # the crop spans 1.2 x 32 pixels around (27.5, 36)
    assert torch.equal(embedder.embed([changed], boxes[:1]), embedder.embed(images[:1], boxes[:1]))
    assert not torch.allclose(embedder.embed(images[:1], [Box(5, 20, 35, 52)]), alone[:1], atol=1e-3)
    assert embedder.embed([], []).shape == (0, 16)


def test_the_mini_embedder_scales_pixels_to_the_range_it_was_trained_on(mini_folder: Path) -> None:
    model = FaceResNet(**SIZES)
    model.load_state_dict(torch.load(_as_state(mini_folder), weights_only=True))
    image = np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    (mini_folder / "config.json").write_text(json.dumps({"class": "FaceResNet", "crop_margin": 1.0, **SIZES}))
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        expected = model.eval()(pixels)
    assert torch.allclose(MiniFaceEmbedder(mini_folder).embed([image], [Box(0, 0, 64, 64)]), expected, atol=1e-5)


def _as_state(folder: Path) -> Path:
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "state.pt")
    return folder / "state.pt"


def test_a_bad_embedder_folder_is_one_clear_line(mini_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the face embedder .*key: scorer\.embedder\.path"):
        MiniFaceEmbedder(tmp_path / "nowhere")
    (mini_folder / "config.json").write_text(
        json.dumps({"class": "FaceResNet", "crop_margin": 0.3, **SIZES, "dimension": 8})
    )
    with pytest.raises(UserError, match="do not fit; expected the weights of FaceResNet") as caught:
        MiniFaceEmbedder(mini_folder)
    assert "\n" not in str(caught.value)
    (mini_folder / "config.json").write_text(json.dumps({"class": "Other"}))
    with pytest.raises(UserError, match="got ValueError: a Other"):
        MiniFaceEmbedder(mini_folder)


def test_facenet_gets_the_librarys_own_crop(portrait: Image.Image, tmp_path: Path) -> None:
    from facenet_pytorch import MTCNN, InceptionResnetV1

    torch.manual_seed(0)
    model = InceptionResnetV1(pretrained=None).eval()
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    path = tmp_path / "facenet.safetensors"
    save_file(state | {"logits.weight": torch.zeros(2, 512), "logits.bias": torch.zeros(2)}, path)
    embedder = FacenetEmbedder(path)
    (found,) = MtcnnDetector().detect([np.asarray(portrait)])
    ours = embedder.embed([np.asarray(portrait)], [found[0].box])
    with torch.no_grad():
        theirs = model(MTCNN()(portrait)[None])  # image_size 160, margin 0, fixed standardization
    assert ours.shape == (1, 512)
    assert torch.allclose(ours, theirs, atol=1e-5)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    again = FacenetEmbedder(path, sha256=digest).embed([np.asarray(portrait)], [found[0].box])
    assert torch.equal(again, ours)
    with pytest.raises(UserError, match=rf"expected sha256 {'0' * 64}; got {digest}; key: scorer\.embedder\.path"):
        FacenetEmbedder(path, sha256="0" * 64)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="do not fit; expected the weights of InceptionResnetV1"):
        FacenetEmbedder(path)


def test_facenet_weights_are_never_unpickled_from_a_users_path(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"x")
    with pytest.raises(UserError, match=r"expected a safetensors file \(pickled weights are never loaded\)"):
        FacenetEmbedder(tmp_path / "weights.pt")
    with pytest.raises(UserError, match="cannot read the weights"):
        FacenetEmbedder(tmp_path / "missing.safetensors")


def test_without_a_network_facenet_says_so_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise faces.urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(faces.urllib.request, "urlopen", offline)
    with pytest.raises(UserError, match=r"cannot download the VGGFace2 face embedder; .*no network"):
        FacenetEmbedder()
    (tmp_path / "checkpoints" / "20180402-114759-vggface2.pt").write_bytes(b"tampered")
    with pytest.raises(UserError, match="is not the published file; expected sha256 281cebca"):
        FacenetEmbedder()


def test_points_lie_on_the_face_in_pixels_of_the_picture(portrait: Image.Image, detector: MtcnnDetector) -> None:
    large = np.asarray(portrait.resize((1600, 1600)))
    for image, scale in ((np.asarray(portrait), 1.0), (large, 1600 / 512)):
        (found,) = detector.detect([image])
        points = np.array(found[0].points) / scale
        assert points.shape == (5, 2)
        expected = [[205, 102], [247, 104], [225, 129], [202, 139], [245, 142]]
        assert np.abs(points - expected).max() < 6


def test_facenets_pixels_in_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """160 px, and (x - 127.5) / 128 whatever the picture's own mean: what the published weights were trained on."""
    from facenet_pytorch import InceptionResnetV1

    seen: list[torch.Tensor] = []
    model = InceptionResnetV1(pretrained=None)
    path = tmp_path / "facenet.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    embedder = FacenetEmbedder(path)
    monkeypatch.setattr(embedder, "_model", lambda batch: seen.append(batch) or torch.ones(len(batch), 512))
    image = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    embedder.embed([image], [Box(40, 60, 200, 220)])  # 160 px: nothing to resize
    (batch,) = seen
    assert batch.shape == (1, 3, 160, 160)
    expected = (torch.from_numpy(image[60:220, 40:200]).permute(2, 0, 1).float() - 127.5) / 128
    assert torch.allclose(batch[0], expected, atol=1e-6)
