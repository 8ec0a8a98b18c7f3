"""Train the autoencoder's decoder once more, alone: encoder, scaling and so every latent and the base stay as they are.

An encoder is trained quickly and well; pictures of faces are lost in a decoder that stopped when both did. Faces weigh
more here than the rest of a picture, as they are what is looked at.
Legend: B batch, H, W pixels; latents have 8 channels and a quarter of the sides.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from metalora.core.errors import UserError
from metalora.miniworld.build.alone import Alone
from metalora.miniworld.build.data import Corpus
from metalora.miniworld.build.loop import Plan, fast_autocast, read_checkpoint, restore_module


@dataclass(frozen=True)
class DecoderRecipe:
    """Length and weights of the decoder's own training."""

    plan: Plan
    batch: int = 32
    rate: float = 1e-3
    edges: float = 1.0
    face_weight: float = 4.0
    """Weight of an error inside the face's box; outside it is 1."""
    seed: int = 15


def face_weights(boxes_B4: np.ndarray, *, height: int, width: int, weight: float) -> Tensor:
    """Weights [B, 1, H, W] with mean 1: `weight` to 1 between pixels inside and outside a box (x0, y0, x1, y1)."""
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    columns = (x >= boxes_B4[:, :1]) & (x < boxes_B4[:, 2:3])
    rows = (y >= boxes_B4[:, 1:2]) & (y < boxes_B4[:, 3:4])
    inside = torch.from_numpy(rows[:, None, :, None] & columns[:, None, None, :])
    weights = 1.0 + (weight - 1.0) * inside.float()
    return weights / weights.mean()


def decoder_loss(made_BCHW: Tensor, target_BCHW: Tensor, weights_B1HW: Tensor, *, edges: float) -> Tensor:
    """Weighted mean absolute error of pixels plus that of horizontal and vertical differences."""
    error_BCHW = made_BCHW - target_BCHW
    loss = (error_BCHW.abs() * weights_B1HW).mean()
    for axis in (2, 3):
        difference = error_BCHW.diff(dim=axis).abs()
        size = difference.shape[axis]
        loss = loss + edges * (difference * weights_B1HW.narrow(axis, 0, size)).mean()
    return loss


def train_decoder(
    corpus: Corpus,
    *,
    latents: dict[str, Tensor],
    vae: AutoencoderKL,
    recipe: DecoderRecipe,
    state: Path,
    quiet: bool = False,
) -> dict[str, float]:
    """Train `vae`'s decoder further on a corpus and leave `state/decoder.safetensors`; continues when it is there.

    Args:
        corpus: the pictures to be drawn again, a selection of what `latents` was made from.
        latents: scaled latents [N, 8, H/4, W/4] by size of all stored pictures, from `encode_corpus`.
        vae: where the decoder begins; it is not changed.

    Returns:
        Steps, samples and seconds of the training.

    Raises:
        UserError: `latents` are not those of the corpus's pictures.
    """
    for size, images in corpus.images.items():
        got = tuple(latents[size].shape) if size in latents else "none"
        height, width = images.shape[1:3]
        wanted = (len(images), vae.config.latent_channels, height // 4, width // 4)
        if got != wanted:
            raise UserError("latents of other pictures", expected=str(wanted), got=str(got), key=f"latents.{size}")
    decoder = copy.deepcopy(vae.decoder).train()
    optimizer = torch.optim.AdamW(
        decoder.parameters(), lr=recipe.rate, betas=(0.9, 0.95), weight_decay=0.01, foreach=True
    )
    training = Alone(decoder, optimizer, plan=recipe.plan, rate=recipe.rate, checkpoint=state / "decoder.safetensors")
    batches = corpus.batches(batch=recipe.batch, seed=recipe.seed, start=training.start)
    rows = corpus.table.row.to_numpy()
    boxes = corpus.table[["x0", "y0", "x1", "y1"]].to_numpy(dtype=float)

    def one_step(step: int) -> dict[str, float]:
        size, positions = next(batches)
        target = corpus.pixels(size, positions)
        z = latents[size][torch.from_numpy(rows[positions])].float()
        weights = face_weights(
            boxes[positions], height=target.shape[2], width=target.shape[3], weight=recipe.face_weight
        )
        with fast_autocast():
            made = decoder(z / vae.config.scaling_factor + vae.config.shift_factor).float()
        loss = decoder_loss(made, target, weights, edges=recipe.edges)
        training.descend(loss, step=step)
        error = (made.detach() - target).square()
        inside = (error * weights).mean()
        return {
            "loss": loss.item(),
            "psnr": -10 * torch.log10(error.mean() / 4).item(),
            "psnr_weighted": -10 * torch.log10(inside / 4).item(),
        }

    return training.run(one_step, name="decoder", batch=recipe.batch, quiet=quiet)


def with_trained_decoder(vae: AutoencoderKL, *, state: Path) -> AutoencoderKL:
    """A copy of an autoencoder whose decoder is the one that `train_decoder` left in `state`."""
    found = copy.deepcopy(vae)
    restore_module(found.decoder, read_checkpoint(state / "decoder.safetensors")[0], "model.")
    return found.eval()
