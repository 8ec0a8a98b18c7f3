"""The cache: keyed by content, never the wrong caption, whole or made again."""

import json
import logging
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from metalora.core.contracts import Box, DetectedFace, TextEmbedding
from metalora.core.errors import UserError
from metalora.people.augment import shapes_for
from metalora.people.cache import LatentCache, prepare_people, prepare_person, to_pixels
from metalora.people.folder import PersonFolder, scan_people

SHAPES = [shapes_for(64, multiple=8)]


class CountingBackbone:
    """Latents are pooled pixels, so that every test can tell whose they are."""

    name, pixel_multiple = "counting", 8

    def __init__(self, fingerprint: str = "a") -> None:
        self.fingerprint = self.encoder_fingerprint = self.text_fingerprint = fingerprint
        self.images = self.captions = 0
        self.batches: list[int] = []

    def encode_image(self, pixels_B3HW: Tensor) -> Tensor:
        self.images += len(pixels_B3HW)
        self.batches.append(len(pixels_B3HW))
        return torch.nn.functional.avg_pool2d(pixels_B3HW, 4)

    def encode_text(self, captions: Sequence[str]) -> TextEmbedding:
        self.captions += len(captions)
        codes = torch.tensor([[float(ord(c)) for c in caption[:16].ljust(16)] for caption in captions])
        return TextEmbedding(codes[:, :, None].repeat(1, 1, 3), codes)


class CentreDetector:
    """Finds one face in the middle of everything that is not black."""

    def detect(self, images: Sequence[np.ndarray]) -> list[list[DetectedFace]]:
        def faces(image: np.ndarray) -> list[DetectedFace]:
            height, width = image.shape[:2]
            box = Box(width / 2 - 20, height / 2 - 25, width / 2 + 20, height / 2 + 25)
            return [DetectedFace(box, 0.99)] if image.any() else []

        return [faces(image) for image in images]


def picture(seed: int, height: int = 160, width: int = 160) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(1, 255, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def save_people(root: Path, *, people: int, photos: int) -> tuple[PersonFolder, ...]:
    for person in range(people):
        for photo in range(photos):
            path = root / f"person-{person}" / f"{photo}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(100 * person + photo)).save(path)
    return tuple(PersonFolder(person.identity, "woman", person.photos) for person in scan_people(root).people)


def shards(root: Path) -> list[Path]:
    return sorted((root / "latents").rglob("*.safetensors"))


def prepare(photos: Sequence[Path | np.ndarray], cache: LatentCache, *, mode: str = "native", noun: str = "woman"):
    return prepare_person(
        photos, identity="p", class_noun=noun, mode=mode, cache=cache, shapes=SHAPES, detector=CentreDetector()
    )  # type: ignore[arg-type]


def test_latents_are_of_the_picture_and_of_its_mirror_image(tmp_path: Path) -> None:
    photo = picture(1, 64, 64)
    person = prepare([photo], LatentCache(tmp_path, CountingBackbone()))
    assert person.caption == "a photo of a woman"
    (image,) = person.images
    assert image.shape == (64, 64) and image.source == "0000 native"
    pixels = to_pixels([photo])
    assert pixels.min() >= -1 and pixels.max() <= 1
    assert torch.allclose(image.latents_2CHW[0], torch.nn.functional.avg_pool2d(pixels, 4)[0], atol=1e-6)
    assert torch.allclose(image.latents_2CHW[1], image.latents_2CHW[0].flip(-1), atol=1e-6)


def test_crops_cover_every_shape_and_one_shard_holds_a_person(tmp_path: Path) -> None:
    backbone = CountingBackbone()
    photos = [picture(1, 400, 300), picture(2, 300, 400)]
    person = prepare(photos, LatentCache(tmp_path, backbone), mode="crops")
    assert {image.shape for image in person.images} == set(SHAPES[0])
    assert all(image.latents_2CHW.shape == (2, 3, *(side // 4 for side in image.shape)) for image in person.images)
    assert len(shards(tmp_path)) == 1
    assert backbone.images == 2 * len(person.images) <= 100


def test_a_second_run_encodes_nothing_and_is_bitwise_the_same(tmp_path: Path) -> None:
    first = prepare([picture(1)], LatentCache(tmp_path, CountingBackbone()), mode="crops")
    backbone = CountingBackbone()
    cache = LatentCache(tmp_path, backbone)
    second = prepare([picture(1)], cache, mode="crops")
    assert backbone.images == 0
    assert [(i.shape, i.source) for i in first.images] == [(i.shape, i.source) for i in second.images]
    assert all(torch.equal(a.latents_2CHW, b.latents_2CHW) for a, b in zip(first.images, second.images, strict=True))
    cache.texts(["a photo of a woman"])
    cache.texts(["a photo of a woman"])
    assert backbone.captions == 1


def test_anything_that_changes_the_latents_changes_the_shard(tmp_path: Path) -> None:
    backbone = CountingBackbone()
    cache = LatentCache(tmp_path, backbone)
    prepare([picture(1)], cache)
    prepare([picture(1)], cache)
    assert len(shards(tmp_path)) == 1
    changed = picture(1).copy()
    changed[0, 0, 0] ^= 1
    prepare([changed], cache)
    prepare([picture(1)], cache, mode="crops")
    prepare([picture(1)], LatentCache(tmp_path, CountingBackbone("other autoencoder")))
    half = CountingBackbone()
    half.dtype = torch.bfloat16  # type: ignore[attr-defined]
    prepare([picture(1)], LatentCache(tmp_path, half))
    prepare_person(
        [picture(1)],
        identity="p",
        class_noun="woman",
        mode="native",
        cache=cache,
        detector=None,
        shapes=[shapes_for(128, multiple=8)],
    )
    assert len(shards(tmp_path)) == 6


def test_crops_at_another_face_are_another_shard(tmp_path: Path) -> None:
    class HigherDetector(CentreDetector):
        def detect(self, images: Sequence[np.ndarray]) -> list[list[DetectedFace]]:
            return [[DetectedFace(Box(40, 10, 80, 60), 0.9)] for _ in images]

    cache = LatentCache(tmp_path, CountingBackbone())
    for detector in (CentreDetector(), HigherDetector()):
        prepare_person(
            [picture(1)], identity="p", class_noun="woman", mode="crops", cache=cache, detector=detector, shapes=SHAPES
        )
    assert len(shards(tmp_path)) == 2


def test_shuffling_never_pairs_latents_with_the_wrong_caption(tmp_path: Path) -> None:
    """diffusers #14430: a cache indexed by position hands out other people's captions after a shuffle."""
    folders = [
        PersonFolder(p.identity, "woman" if n % 2 else "man", p.photos)
        for n, p in enumerate(save_people(tmp_path / "people", people=6, photos=2))
    ]
    truth = {person.identity: person for person in _prepare(folders, tmp_path / "cache")}
    rng = random.Random(0)
    for _ in range(5):
        rng.shuffle(folders)
        backbone = CountingBackbone()
        cache = LatentCache(tmp_path / "cache", backbone)
        people = prepare_people(folders, mode="native", cache=cache, shapes=SHAPES, detector=None)
        captions = [person.caption for person in people]
        texts = cache.texts(rng.sample(captions, len(captions)))
        assert backbone.images == 0
        for folder, person in zip(folders, people, strict=True):
            assert person.identity == folder.identity
            assert person.caption == f"a photo of a {folder.class_noun}"
            fresh = CountingBackbone().encode_text([person.caption])
            assert torch.equal(texts[person.caption].tokens_BLD, fresh.tokens_BLD)
            assert torch.equal(texts[person.caption].pooled_BP, fresh.pooled_BP)
            for image, path in zip(person.images, folder.photos, strict=True):
                assert image.source.startswith(path.name)
                seed = 100 * int(person.identity[-1]) + int(path.stem)
                small = np.asarray(Image.fromarray(picture(seed)).resize((64, 64), Image.Resampling.LANCZOS))
                expected = CountingBackbone().encode_image(to_pixels([small]))[0]
                assert torch.allclose(image.latents_2CHW[0], expected, atol=0.02)
                assert torch.equal(image.latents_2CHW, truth[person.identity].images[int(path.stem)].latents_2CHW)


def _prepare(folders: Sequence[PersonFolder], root: Path):
    return prepare_people(
        folders, mode="native", cache=LatentCache(root, CountingBackbone()), shapes=SHAPES, detector=None
    )


def test_nobodys_latents_depend_on_who_else_is_prepared(tmp_path: Path) -> None:
    folders = save_people(tmp_path / "people", people=3, photos=5)
    backbone = CountingBackbone()
    prepare_people(
        folders, mode="native", cache=LatentCache(tmp_path / "c", backbone, batch_size=6), shapes=SHAPES, detector=None
    )
    assert backbone.batches == [6, 4] * 3  # three photos and their mirror images, then two; never across people


def test_progress_counts_people_and_a_stopped_run_goes_on(tmp_path: Path) -> None:
    folders = save_people(tmp_path / "people", people=4, photos=1)
    seen: list[tuple[int, int]] = []

    def stop_after_two(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    def run(backbone: CountingBackbone, progress) -> None:
        cache = LatentCache(tmp_path / "cache", backbone)
        prepare_people(folders, mode="native", cache=cache, shapes=SHAPES, detector=None, progress=progress)

    with pytest.raises(KeyboardInterrupt):
        run(CountingBackbone(), stop_after_two)
    again = CountingBackbone()
    run(again, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert again.images == 4


@pytest.mark.parametrize("damage", ["cut", "flip", "garbage", "empty"])
def test_a_damaged_shard_is_made_again_and_said(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    original = prepare([picture(1)], LatentCache(tmp_path, CountingBackbone()))
    (path,) = shards(tmp_path)
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[-10] ^= 1
    path.write_bytes({"cut": data[:-100], "flip": bytes(flipped), "garbage": b"x" * 500, "empty": b""}[damage])
    backbone = CountingBackbone()
    with caplog.at_level(logging.WARNING):
        again = prepare([picture(1)], LatentCache(tmp_path, backbone))
    assert backbone.images == 2
    assert torch.equal(again.images[0].latents_2CHW, original.images[0].latents_2CHW)
    assert str(path) in caplog.text and "made again" in caplog.text
    assert path.read_bytes() == data


def test_a_shard_under_another_name_is_not_believed(tmp_path: Path) -> None:
    cache = LatentCache(tmp_path, CountingBackbone())
    prepare([picture(1)], cache)
    (one,) = shards(tmp_path)
    prepare([picture(2)], cache)
    (two,) = set(shards(tmp_path)) - {one}
    two.write_bytes(one.read_bytes())
    backbone = CountingBackbone()
    prepare([picture(2)], LatentCache(tmp_path, backbone))
    assert backbone.images == 2


def test_a_full_disk_is_an_oserror_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        prepare([picture(1)], LatentCache(tmp_path, CountingBackbone()))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_photos_without_a_face_or_a_noun_are_one_clear_line(tmp_path: Path) -> None:
    black = tmp_path / "black" / "a.png"
    black.parent.mkdir()
    Image.new("RGB", (160, 160)).save(black)
    cache = LatentCache(tmp_path / "cache", CountingBackbone())
    for mode in ("crops", "whole"):
        with pytest.raises(UserError, match=r"no face found in .*a\.png"):
            prepare([black], cache, mode=mode)
    assert len(prepare([black], cache, mode="native").images) == 1
    with pytest.raises(UserError, match="no class noun for black"):
        prepare_people(scan_people(black.parent).people, mode="native", cache=cache, shapes=SHAPES, detector=None)


def test_a_real_backbone(tmp_path: Path, tiny_backbone) -> None:
    photo = picture(1, 32, 32)
    shapes = [[(24, 24)]]
    cache = LatentCache(tmp_path, tiny_backbone)
    person = prepare_person(
        [photo], identity="p", class_noun="man", mode="native", cache=cache, shapes=shapes, detector=None
    )
    small = Image.fromarray(photo).resize((24, 24), Image.Resampling.LANCZOS, reducing_gap=3.0)
    expected = tiny_backbone.encode_image(to_pixels([np.asarray(small)]))
    assert torch.allclose(person.images[0].latents_2CHW[:1], expected, atol=1e-5)
    assert not person.images[0].latents_2CHW.is_inference()
    text = cache.texts([person.caption])[person.caption]
    assert torch.equal(text.tokens_BLD, tiny_backbone.encode_text([person.caption]).tokens_BLD)


def test_the_cached_file_says_what_it_holds(tmp_path: Path) -> None:
    from safetensors import safe_open

    prepare([picture(1)], LatentCache(tmp_path, CountingBackbone()))
    with safe_open(shards(tmp_path)[0], framework="pt") as file:
        about = json.loads(file.metadata()["metalora"])
    assert about["names"] == [{"shape": [64, 64], "source": "0000 native"}]
    assert about["key"] == shards(tmp_path)[0].stem
