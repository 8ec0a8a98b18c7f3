"""What the tuning-free rival is trained on: the Stage-1 people's photos, each with a sharp crop of its own face.

Every photo is its own reference, the common practice of such adapters (IP-Adapter, InstantID): what the crop shows is
what is to be drawn. Shots are those of the Stage-1 photo folders, pictures are square. People come in parts of
`PEOPLE_PER_PART`, a file each; a run that was cut goes on with the first part that is missing.

Legend: N photos, E embedding, P patches, F patch features, K captions per photo, L text tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metalora.backbones.flux import load_flux
from metalora.core.contracts import Box
from metalora.miniworld.build.data import generator
from metalora.miniworld.build.flux_data import caption_tokens, face_coverage
from metalora.miniworld.build.loop import read_checkpoint, write_checkpoint
from metalora.miniworld.captions import sample_caption
from metalora.miniworld.folders import Photo
from metalora.miniworld.identity import generator_from
from metalora.miniworld.population import CLASS_NOUNS, identity
from metalora.miniworld.renderer import face_boxes, render
from metalora.miniworld.shots import Shot, sample_shot
from metalora.perception.face_patches import MiniFacePatches

SIDE = 64
PEOPLE_PER_PART = 50
_REFERENCE_SIDE, _REFERENCE_SCALE = 128, 1.0
# In these close pictures MTCNN's boxes are larger than the renderer's by about 0.06 and lie higher by about 0.06 of
# a side, and they stray.
_GROWN, _RAISED, _STRAY = 0.06, 0.06, 0.06


@dataclass(frozen=True)
class RivalData:
    """Photos of people in the order of the population, `photos` of each.

    Args:
        latents: fp16 [N, 8, 16, 16].
        embeddings: fp16 [N, E], of the photo's own face crop.
        patches: fp16 [N, P, F], of the same crop.
        tokens: uint8 [N, K, L], several captions per photo.
        faces: fp16 [N, tokens], the share of each image token that the face's box covers.
    """

    latents: Tensor
    embeddings: Tensor
    patches: Tensor
    tokens: Tensor
    faces: Tensor

    def share_memory(self) -> None:
        """Let worker processes map these tensors instead of copying them."""
        for tensor in (self.latents, self.embeddings, self.patches, self.tokens, self.faces):
            tensor.share_memory_()


def shots_of(number: int, *, photos: int) -> list[Photo]:
    """The first photos of person `number` of split stage1 (men and women in turn), as in the Stage-1 folders."""
    person = identity("stage1", CLASS_NOUNS[number % 2], number // 2)
    rng = generator_from(f"photos/{person.key}")
    shots = [sample_shot(rng, fixed={"style": "photo"}) for _ in range(photos)]
    return [Photo(f"{k:02d}.png", person, shot, SIDE, SIDE) for k, shot in enumerate(shots)]


def reference_shot(shot: Shot) -> Shot:
    """The same moment with the head in the middle and close: what a crop from a large photo shows."""
    return replace(shot, scale=_REFERENCE_SCALE, offset_x=0.0, offset_y=0.0)


def reference_boxes(photos: list[Photo], *, seed: int) -> list[Box]:
    """Face boxes in the close pictures, moved a little."""
    boxes_N4 = face_boxes(
        [photo.person for photo in photos],
        [reference_shot(photo.shot) for photo in photos],
        _REFERENCE_SIDE,
        _REFERENCE_SIDE,
    )
    found = []
    for photo, (x0, y0, x1, y1) in zip(photos, boxes_N4, strict=True):
        rng = generator(seed, "box", photo.person.key, photo.name)
        side = max(x1 - x0, y1 - y0)
        dx, dy, grown = rng.uniform(-_STRAY, _STRAY, 3) * side
        dy, grown = dy - _RAISED * side, (grown + _GROWN * side) / 2
        found.append(Box(x0 + dx - grown, y0 + dy - grown, x1 + dx + grown, y1 + dy + grown))
    return found


def write_part(path: Path, *, numbers: range, photos: int, captions: int, seed: int, weights: Path) -> None:
    """Render and encode the photos of some people; the same arguments always give the same part."""
    own = [photo for number in numbers for photo in shots_of(number, photos=photos)]
    people, shots = [photo.person for photo in own], [photo.shot for photo in own]
    pictures = render(people, shots, height=SIDE, width=SIDE)
    close = render(
        people,
        [reference_shot(shot) for shot in shots],
        height=_REFERENCE_SIDE,
        width=_REFERENCE_SIDE,
        supersample=1,
    )
    faces = MiniFacePatches(weights / "face").look(list(close), reference_boxes(own, seed=seed))
    backbone = load_flux(weights / "flux", name="mini", max_text_tokens=24)
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = torch.cat([backbone.encode_image(part) for part in pixels.split(50)])
    texts = []
    for photo in own:
        rng = generator(seed, "captions", photo.person.key, photo.name)
        texts += [sample_caption(rng, photo.person.class_noun, photo.shot) for _ in range(captions)]
    boxes_N4 = np.asarray(face_boxes(people, shots, SIDE, SIDE), dtype=float)
    write_checkpoint(
        path,
        {
            "latents": latents.half(),
            "embeddings": faces.embedding_BE.half(),
            "patches": faces.patches_BPF.half(),
            "tokens": caption_tokens(texts).to(torch.uint8).view(len(own), captions, -1),
            "faces": face_coverage(boxes_N4, grid=(SIDE // 8, SIDE // 8)),
        },
        notes={"first": numbers.start, "last": numbers.stop - 1, "photos": photos, "captions": captions, "seed": seed},
    )


def write_data(
    folder: Path,
    *,
    people: int,
    photos: int,
    captions: int,
    seed: int,
    weights: Path,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Make every part that is not there yet; returns all of them."""
    starts = range(0, people, PEOPLE_PER_PART)
    paths = [folder / f"people{photos}x{captions}-{seed}-{start:05d}.safetensors" for start in starts]
    for start, path in zip(starts, paths, strict=True):
        if not path.is_file():
            numbers = range(start, min(start + PEOPLE_PER_PART, people))
            write_part(path, numbers=numbers, photos=photos, captions=captions, seed=seed, weights=weights)
        if progress is not None:
            progress(start, people)
    return paths


def load_data(paths: list[Path]) -> RivalData:
    """Join parts."""
    parts = [read_checkpoint(path)[0] for path in paths]
    return RivalData(**{name: torch.cat([part[name] for part in parts]) for name in RivalData.__dataclass_fields__})
