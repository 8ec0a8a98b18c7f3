"""Latents and text embeddings on disk, keyed by what they were made from, and people made ready for training.

A latent can never meet another picture's caption: a person's shard is named by the content it was computed from, and
a text embedding by its caption and encoder. Nothing is looked up by position.

Shape legend: C latent channels, H W latent height and width, L text tokens, D text width.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from metalora.core.contracts import Backbone, FaceDetector, TextEmbedding, TrainingImage, TrainingPerson
from metalora.core.errors import UserError
from metalora.people.augment import (
    Mode,
    Shape,
    TrainingPicture,
    choose_face,
    plan_pictures,
    training_pictures,
)
from metalora.people.folder import PersonFolder
from metalora.people.photos import load_photo, pixel_sha256
from metalora.people.shards import read_shard, write_shard

CAPTION = "a photo of a {class_noun}"
"""No rare token: evaluation prompts say man and woman too."""
_FORMAT = "metalora-cache-1"


class LatentCache:
    """Latents and text embeddings of one backbone in a folder; safe for several processes at once.

    Args:
        root: the cache folder, shared by all backbones and runs.
        backbone: encodes what is not there yet; its encoders are not touched when everything is.
        batch_size: pictures encoded at once.
    """

    def __init__(self, root: Path, backbone: Backbone, *, batch_size: int = 16) -> None:
        self.root, self._backbone, self._batch_size = Path(root), backbone, batch_size

    def images(
        self, inputs: Mapping[str, Any], pictures: Callable[[], Sequence[TrainingPicture]]
    ) -> tuple[TrainingImage, ...]:
        """One shard: the latents of all pictures that come from `inputs`, both flips.

        Args:
            inputs: everything the pictures are computed from (photo hashes, windows, shapes), JSON values.
            pictures: makes them; called only when the shard is missing or damaged.
        """
        key = _key({"kind": "latents", "encoder": self._encoder(self._backbone.encoder_fingerprint), "inputs": inputs})
        path = self.root / "latents" / key[:2] / f"{key}.safetensors"
        stored = read_shard(path, key=key)
        if stored is None:
            made = pictures()
            latents = encode_pictures(made, self._backbone, batch_size=self._batch_size)
            names = [{"shape": picture.shape, "source": picture.source} for picture in made]
            stored = {f"{place:04d}": latents_2CHW for place, latents_2CHW in enumerate(latents)}, names
            write_shard(path, *stored, key=key)
        tensors, names = stored
        return tuple(
            TrainingImage(tensors[f"{place:04d}"], (name["shape"][0], name["shape"][1]), name["source"])
            for place, name in enumerate(names)
        )

    def texts(self, captions: Iterable[str]) -> dict[str, TextEmbedding]:
        """Each caption's embedding, a batch of one. Every caption is encoded alone: no batch mate can change it."""
        return {caption: self._text(caption) for caption in sorted(set(captions))}

    def _text(self, caption: str) -> TextEmbedding:
        key = _key({"kind": "text", "encoder": self._encoder(self._backbone.text_fingerprint), "caption": caption})
        path = self.root / "text" / f"{key}.safetensors"
        stored = read_shard(path, key=key)
        if stored is None:
            text = self._backbone.encode_text([caption])
            tensors = {"tokens": text.tokens_BLD.detach().cpu(), "pooled": text.pooled_BP.detach().cpu()}
            stored = tensors, [{"caption": caption}]
            write_shard(path, *stored, key=key)
        return TextEmbedding(stored[0]["tokens"], stored[0]["pooled"])

    def _encoder(self, fingerprint: str) -> list[str]:
        """What names an encoder: its weights, its precision and how much text it reads."""
        return [fingerprint, *(str(getattr(self._backbone, name, "")) for name in ("dtype", "max_text_tokens"))]


def encode_pictures(pictures: Sequence[TrainingPicture], backbone: Backbone, *, batch_size: int) -> list[Tensor]:
    """Latents [2, C, H, W] of every picture and of its mirror image, on the CPU.

    Pictures of one shape are encoded together. Only a person's own pictures share a batch, so that nobody's latents
    depend on who else is prepared (batched convolutions differ in the last bit).
    """
    latents: dict[int, Tensor] = {}
    per_batch = max(1, batch_size // 2)
    for shape in dict.fromkeys(picture.shape for picture in pictures):
        places = [place for place, picture in enumerate(pictures) if picture.shape == shape]
        for start in range(0, len(places), per_batch):
            batch = places[start : start + per_batch]
            pixels_B3HW = to_pixels([pictures[place].pixels for place in batch])
            with torch.no_grad():
                plain_BCHW, mirrored_BCHW = (
                    backbone.encode_image(torch.cat([pixels_B3HW, pixels_B3HW.flip(-1)])).cpu().chunk(2)
                )
            for place, plain, mirrored in zip(batch, plain_BCHW, mirrored_BCHW, strict=True):
                latents[place] = torch.stack([plain, mirrored])
    return [latents[place] for place in range(len(pictures))]


def to_pixels(images: Sequence[np.ndarray]) -> Tensor:
    """uint8 RGB images [H, W, 3] of one size to float pixels [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def prepare_person(
    photos: Sequence[Path | np.ndarray],
    *,
    identity: str,
    class_noun: str,
    mode: Mode,
    cache: LatentCache,
    shapes: Sequence[Sequence[Shape]],
    detector: FaceDetector | None,
    face: Literal["only", "largest"] = "only",
    key: str = "image",
) -> TrainingPerson:
    """Make one person ready for training: photos read, checked, cut, encoded, or taken from the cache.

    Args:
        photos: files, or uint8 RGB arrays.
        identity: names the person.
        class_noun: goes into the caption "a photo of a {class_noun}".
        mode: "crops" (App. D) and "whole" look for the face in every photo; "native" takes photos as they are.
        cache: holds the latents and the backbone that makes them.
        shapes: one set of shapes per resolution (`shapes_for`).
        detector: finds faces; "native" needs none.
        face: "only": exactly one face per photo. "largest": take the largest.
        key: the configuration key that named the photos, for error messages.

    Raises:
        UserError: an unusable photo; no face or several.
    """
    assert photos, identity
    assert mode == "native" or detector is not None, mode
    names = [photo.name if isinstance(photo, Path) else f"{number:04d}" for number, photo in enumerate(photos)]
    loaded: list[np.ndarray] | None = None
    faces = None
    if mode != "native" and detector is not None:
        loaded = [_load(photo, key=key) for photo in photos]
        wheres = [str(photo) if isinstance(photo, Path) else name for photo, name in zip(photos, names, strict=True)]
        found = detector.detect(loaded)
        faces = [choose_face(f, face=face, name=where, key=key) for f, where in zip(found, wheres, strict=True)]
    inputs: dict[str, Any] = {
        "photos": [_content_sha256(photo, key=key) for photo in photos],
        "names": names,
        "mode": "crops" if mode == "crops" else "whole",
        "shapes": shapes,
    }
    if mode == "crops" and loaded is not None and faces is not None:
        inputs["windows"] = [
            [plan.window for plan in plan_pictures((photo.shape[0], photo.shape[1]), box, mode=mode, shapes=shapes)]
            for photo, box in zip(loaded, faces, strict=True)
        ]

    def pictures() -> list[TrainingPicture]:
        made: list[TrainingPicture] = []
        for place, (photo, name) in enumerate(zip(photos, names, strict=True)):
            pixels = loaded[place] if loaded is not None else _load(photo, key=key)
            box = faces[place] if faces is not None else None
            made += training_pictures(pixels, box, mode=mode, shapes=shapes, name=name)
        return made

    return TrainingPerson(identity, CAPTION.format(class_noun=class_noun), cache.images(inputs, pictures))


def prepare_people(
    people: Sequence[PersonFolder],
    *,
    mode: Mode,
    cache: LatentCache,
    shapes: Sequence[Sequence[Shape]],
    detector: FaceDetector | None,
    class_noun: str | None = None,
    face: Literal["only", "largest"] = "only",
    key: str = "people.root",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[TrainingPerson, ...]:
    """`prepare_person` for many, one shard each; what a stopped run has encoded is not encoded again.

    Args:
        people: from `scan_people`.
        class_noun: of the people whose folder does not tell one.
        progress: called with (done, total) people.

    Raises:
        UserError: as `prepare_person`, and for a person without a class noun.
    """
    for person in people:
        if not (person.class_noun or class_noun):
            raise UserError(
                f"no class noun for {person.identity}",
                expected="class_noun, or an entry in identities.json",
                got="neither",
                key="class_noun",
            )
    prepared: list[TrainingPerson] = []
    for done, person in enumerate(people, start=1):
        prepared.append(
            prepare_person(
                person.photos,
                identity=person.identity,
                class_noun=person.class_noun or class_noun or "",
                mode=mode,
                cache=cache,
                shapes=shapes,
                detector=detector,
                face=face,
                key=key,
            )
        )
        if progress is not None:
            progress(done, len(people))
    return tuple(prepared)


def _load(photo: Path | np.ndarray, *, key: str) -> np.ndarray:
    return load_photo(photo, key=key) if isinstance(photo, Path) else photo


def _content_sha256(photo: Path | np.ndarray, *, key: str) -> str:
    """Of a file its bytes (a Stage-1 set of thousands is looked up without decoding one), of an array its pixels."""
    if not isinstance(photo, Path):
        return pixel_sha256(photo)
    try:
        return hashlib.sha256(photo.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read the photo {photo}", got=error.strerror or str(error), key=key) from None


def _key(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([_FORMAT, value], sort_keys=True).encode()).hexdigest()
