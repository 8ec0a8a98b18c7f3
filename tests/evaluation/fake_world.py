"""A small benchmark with fake scorers whose answers can be worked out by hand: a colour is its own embedding."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from metalora.core.contracts import Box, DetectedFace, GeneratedImage
from metalora.core.manifest import write_manifest
from metalora.evaluation.embeddings import Scorers

PROMPTS = {"unsplash": ("front-0", "front-1"), "ffhq": ("style-0", "style-1", "style-2")}


@dataclass(frozen=True)
class Person:
    identity: str
    class_noun: str
    reference: Path
    test_photos: tuple[Path, ...]
    part: str


def paint(path: Path, colour, *, size=(40, 36)) -> Path:
    """A picture of one colour; red 0 is a picture without a face."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((*size, 3), dtype=np.uint8)
    pixels[:] = colour
    pixels[0, 0] = (colour[2], colour[0], colour[1])
    Image.fromarray(pixels).resize(size[::-1]).save(path)
    return path


@dataclass
class FakeScorer:
    """Detector, embedder and CLIP at once; counts what it is asked."""

    batches: list[int] = field(default_factory=list)
    faces_asked: int = 0
    texts_asked: int = 0

    def detect(self, images):
        self.batches.append(len(images))
        self.faces_asked += len(images)
        height, width = images[0].shape[:2]
        face = DetectedFace(Box(0, 0, width, height), 0.99)
        return [[face, DetectedFace(Box(0, 0, 1, 1), 0.91)] if image[-1, -1, 0] > 0 else [] for image in images]

    def embed(self, images, boxes):
        assert all(box.x1 > 1 for box in boxes), "the best face comes first"
        return self._colours(images)

    def embed_images(self, images):
        self.batches.append(len(images))
        return self._colours(images)

    def embed_texts(self, prompts):
        self.texts_asked += len(prompts)
        vectors = torch.tensor([[len(text), text.count("a"), 1.0] for text in prompts])
        return torch.nn.functional.normalize(vectors, dim=1)

    @staticmethod
    def _colours(images):
        vectors = torch.tensor(np.stack([image[-1, -1] for image in images]).astype(np.float32))
        return torch.nn.functional.normalize(vectors, dim=1)

    def scorers(self, fingerprint="fake" * 8):
        return Scorers(lambda: self, lambda: self, lambda: self, fingerprint)


@dataclass(frozen=True)
class World:
    """Subjects on disk and a folder of images with its manifest."""

    subjects: tuple[Person, ...]
    images: Path
    records: tuple[GeneratedImage, ...]


def make_world(tmp_path: Path) -> World:
    """Two women and two men with several photos, one more of each with a single photo; three methods' images."""
    rng = np.random.default_rng(0)

    def colour():
        return tuple(int(c) for c in rng.integers(1, 255, 3))

    def photo(name):
        return paint(tmp_path / "benchmark" / name, colour())

    subjects = []
    for identity, noun in (("ann", "woman"), ("bea", "woman"), ("cid", "man"), ("dan", "man")):
        tests = [photo(f"{identity}/{n}.png") for n in (1, 2, 3)]
        subjects.append(Person(identity, noun, photo(f"{identity}/0.png"), tuple(tests), "unsplash"))
    paint(subjects[0].test_photos[1], (0, 200, 100))  # a test photo without a face
    for identity, noun in (("eve", "woman"), ("fox", "man")):
        subjects.append(Person(identity, noun, photo(f"{identity}.png"), (), "ffhq"))

    records = []

    def add(identity, noun, method, iterations, prompt_id):
        base = method == "base"
        file = f"images/{identity}/{method}-{iterations}/{prompt_id}-0.png"
        miss = (identity, method, prompt_id) == ("cid", "lora", "front-1")
        paint(tmp_path / "out" / file, (0, 9, 9) if miss else colour())
        record = GeneratedImage(
            file=file,
            method=method,
            identity=identity,
            class_noun=noun,
            prompt_id=prompt_id,
            prompt=f"a photo of a {noun}, {prompt_id}",
            seed=0,
            rank=0 if base else 1,
            iterations=iterations,
            lora="" if base else "somewhere",
            lora_sha256="" if base else "abc",
            base_model="fake@1",
            steps=3,
            guidance=3.5,
            size=(40, 36),
        )
        records.append(record)

    for noun in ("woman", "man"):
        for prompt_id in (*PROMPTS["unsplash"], *PROMPTS["ffhq"]):
            add(noun, noun, "base", 0, prompt_id)
    for subject in subjects:
        for method in ("lora", "lora_aug", "meta_lora"):
            for iterations in (375, 625):
                for prompt_id in PROMPTS[subject.part]:
                    add(subject.identity, subject.class_noun, method, iterations, prompt_id)
    write_manifest(tmp_path / "out" / "manifest.jsonl", records)
    return World(tuple(subjects), tmp_path / "out", tuple(records))
