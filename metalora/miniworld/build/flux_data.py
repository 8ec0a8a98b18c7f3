"""What the base is trained on: the corpus's latents, several captions per picture, and where its faces are.

Legend: B batch, K captions per picture, L text tokens, N image tokens, C channels of a packed token.
"""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import FluxPipeline
from torch import Tensor

from metalora.miniworld.build.data import Corpus, generator
from metalora.miniworld.build.models import TEXT_LENGTH, VAE_FACTOR
from metalora.miniworld.build.wordlist import make_tokenizer
from metalora.miniworld.captions import sample_caption
from metalora.miniworld.shots import Shot


@dataclass(frozen=True)
class FluxData:
    """What the base is trained on: latents by size, rows and captions of the pictures that may be used.

    Args:
        latents: fp16 [N, 8, h, w] by size, all stored pictures.
        positions: for every size the rows of `latents` that trainings may use.
        tokens: for every size uint8 [len(positions), K, L]: several captions per picture.
        faces: for every size fp16 [len(positions), N]: the share of each image token that the face's box covers.
        empty: the empty caption [L].
    """

    latents: dict[str, Tensor]
    positions: dict[str, np.ndarray]
    tokens: dict[str, Tensor]
    faces: dict[str, Tensor]
    empty: Tensor

    def share_memory(self) -> None:
        """Let worker processes map these tensors instead of copying them."""
        for tensor in (*self.latents.values(), *self.tokens.values(), *self.faces.values(), self.empty):
            tensor.share_memory_()


def caption_tokens(texts: list[str]) -> Tensor:
    """Token ids [N, L] of captions, padded to the fixed length."""
    tokenizer = make_tokenizer()
    encoded = tokenizer(texts, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt")
    return encoded.input_ids


def draw_captions(corpus: Corpus, *, captions: int, seed: int) -> dict[str, Tensor]:
    """Several captions for every picture of a corpus: uint8 [N, K, L] by size, in the table's order."""
    tokens = {}
    for size, group in corpus.table.groupby("size", sort=True):
        rng, texts = generator(seed, "captions", str(size)), []
        for noun, shot in zip(group.class_noun, group["shot"], strict=True):
            known = Shot.from_json(shot)
            texts += [sample_caption(rng, noun, known) for _ in range(captions)]
        tokens[str(size)] = caption_tokens(texts).to(torch.uint8).view(len(group), captions, TEXT_LENGTH)
    return tokens


def join_data(corpus: Corpus, *, latents: dict[str, Tensor], tokens: dict[str, Tensor]) -> FluxData:
    """The pictures of `corpus` (a selection) with their latents (of all stored pictures) and captions."""
    positions = {str(size): group.row.to_numpy() for size, group in corpus.table.groupby("size", sort=True)}
    faces = {
        str(size): face_coverage(
            group[["x0", "y0", "x1", "y1"]].to_numpy(dtype=float),
            grid=tuple(x // 2 for x in latents[str(size)].shape[-2:]),
        )
        for size, group in corpus.table.groupby("size", sort=True)
    }
    return FluxData(latents, positions, tokens, faces, caption_tokens([""])[0].to(torch.uint8))


def face_coverage(boxes_B4: np.ndarray, *, grid: tuple[int, int]) -> Tensor:
    """Share of each image token [B, N] that a face box (x0, y0, x1, y1 in pixels) covers, fp16.

    Args:
        grid: height and width in tokens; a token is as wide as two latents.
    """
    side = 2 * VAE_FACTOR

    def overlap(low_B: np.ndarray, high_B: np.ndarray, count: int) -> np.ndarray:
        edges = side * np.arange(count)
        covered = np.minimum(high_B[:, None], edges + side) - np.maximum(low_B[:, None], edges)
        return covered.clip(0, side) / side

    rows, columns = overlap(boxes_B4[:, 1], boxes_B4[:, 3], grid[0]), overlap(boxes_B4[:, 0], boxes_B4[:, 2], grid[1])
    return torch.from_numpy((rows[:, :, None] * columns[:, None, :]).reshape(len(boxes_B4), -1)).half()


def pack(latents_BCHW: Tensor) -> Tensor:
    """Latents as FLUX's tokens [B, N, 4C], two by two, exactly as FluxPipeline packs them."""
    batch, channels, height, width = latents_BCHW.shape
    return FluxPipeline._pack_latents(latents_BCHW, batch, channels, height, width)


def image_ids(height: int, width: int) -> Tensor:
    """Position ids [N, 3] of a picture of height x width packed tokens, as FluxPipeline makes them."""
    return FluxPipeline._prepare_latent_image_ids(1, height, width, torch.device("cpu"), torch.float32)
