"""Train the autoencoder: absolute error of pixels and of edges, a light KL term, and latents scaled to unit variance.

Legend: B batch, H, W pixels; latents have 8 channels and a quarter of the sides.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as functional
from diffusers import AutoencoderKL
from torch import Tensor

from metalora.miniworld.build.alone import Alone
from metalora.miniworld.build.data import Corpus, torch_generator
from metalora.miniworld.build.loop import Plan, fast_autocast, read_checkpoint, restore_module
from metalora.miniworld.build.models import make_vae


@dataclass(frozen=True)
class VaeRecipe:
    """Sizes and weights of the autoencoder's training."""

    plan: Plan
    batch: int = 16
    rate: float = 2e-3
    edges: float = 1.0
    kl: float = 2e-4
    widths: tuple[int, int, int] = (16, 32, 64)
    seed: int = 11


def _edges(x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    return x_BCHW[..., :, 1:] - x_BCHW[..., :, :-1], x_BCHW[..., 1:, :] - x_BCHW[..., :-1, :]


def vae_loss(reconstruction_BCHW: Tensor, target_BCHW: Tensor, *, edges: float) -> Tensor:
    """Mean absolute error plus that of horizontal and vertical differences at two scales (sharp lines, no blur)."""
    loss = functional.l1_loss(reconstruction_BCHW, target_BCHW)
    for scale in (1, 2):
        ours = functional.avg_pool2d(reconstruction_BCHW, scale) if scale > 1 else reconstruction_BCHW
        theirs = functional.avg_pool2d(target_BCHW, scale) if scale > 1 else target_BCHW
        for a, b in zip(_edges(ours), _edges(theirs), strict=True):
            loss = loss + edges * functional.l1_loss(a, b) / 2
    return loss


def train_vae(corpus: Corpus, *, recipe: VaeRecipe, state: Path, quiet: bool = False) -> dict[str, float]:
    """Train and leave `state/vae.safetensors`; continues from it when it is there.

    Returns:
        Steps, samples and seconds of the training.
    """
    model = make_vae(widths=recipe.widths, seed=recipe.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.rate, betas=(0.9, 0.95), weight_decay=0.01, foreach=True
    )
    training = Alone(model, optimizer, plan=recipe.plan, rate=recipe.rate, checkpoint=state / "vae.safetensors")
    batches = corpus.batches(batch=recipe.batch, seed=recipe.seed, start=training.start)

    def one_step(step: int) -> dict[str, float]:
        x_BCHW = corpus.pixels(*next(batches))
        with fast_autocast():
            moments = model.encode(x_BCHW).latent_dist
            mean, logvar = moments.mean.float(), moments.logvar.float()
            noise = torch.randn(mean.shape, generator=torch_generator(recipe.seed, "noise", step))
            y_BCHW = model.decode(mean + torch.exp(0.5 * logvar) * noise).sample.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = vae_loss(y_BCHW, x_BCHW, edges=recipe.edges)
        training.descend(loss + recipe.kl * kl, step=step)
        error = functional.mse_loss(y_BCHW.detach(), x_BCHW)
        return {"loss": loss.item(), "kl": kl.item(), "psnr": -10 * torch.log10(error / 4).item()}

    return training.run(one_step, name="autoencoder", batch=recipe.batch, quiet=quiet)


def trained_vae(corpus: Corpus, *, recipe: VaeRecipe, state: Path) -> AutoencoderKL:
    """The trained autoencoder with the scaling and shift that give its latents zero mean and unit variance."""
    model = make_vae(widths=recipe.widths, seed=recipe.seed)
    restore_module(model, read_checkpoint(state / "vae.safetensors")[0], "model.")
    model.eval()
    size, positions = next(corpus.batches(batch=256, seed=recipe.seed + 1))
    with torch.no_grad():
        latents = model.encode(corpus.pixels(size, positions)).latent_dist.mean
    shift, scale = latents.mean().item(), 1.0 / latents.std().item()
    model.register_to_config(scaling_factor=round(scale, 5), shift_factor=round(shift, 5))
    return model


def encode_corpus(corpus: Corpus, *, vae: AutoencoderKL) -> dict[str, Tensor]:
    """Scaled latents [N, 8, H/4, W/4] in fp16 of every stored image, by size (held-out ones included)."""
    found: dict[str, Tensor] = {}
    for size, images in corpus.images.items():
        pieces = []
        for first in range(0, len(images), 128):
            x = torch.from_numpy(images[first : first + 128].copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
            with torch.no_grad(), fast_autocast():
                z = vae.encode(x).latent_dist.mean.float()
            pieces.append(((z - vae.config.shift_factor) * vae.config.scaling_factor).half())
        found[size] = torch.cat(pieces).contiguous()
    return found
