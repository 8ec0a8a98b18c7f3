"""Sample pictures from the models in memory: FluxPipeline's Euler steps without the pipeline.

Legend: B batch, H, W pixels, N image tokens, C channels of a packed token.
"""

from itertools import pairwise
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextModel, T5EncoderModel

from metalora.miniworld.build.flux_data import caption_tokens, image_ids
from metalora.miniworld.build.forward import rotary, velocity
from metalora.miniworld.build.models import LATENT_CHANNELS, TEXT_LENGTH, VAE_FACTOR, FluxModels


def sigmas(steps: int, *, shift: float) -> Tensor:
    """Noise levels [steps + 1] from 1 to 0 as the pipeline's scheduler spaces them."""
    levels = torch.linspace(1.0, 1.0 / steps, steps)
    return torch.cat([shift * levels / (1 + (shift - 1) * levels), torch.zeros(1)])


@torch.no_grad()
def sample_images(
    models: FluxModels,
    vae: AutoencoderKL,
    prompts: list[str],
    *,
    noise_BNC: Tensor,
    height: int,
    width: int,
    guidance: float,
    steps: int,
    shift: float,
) -> Tensor:
    """Pictures [B, 3, H, W] in [-1, 1], one per prompt.

    Args:
        noise_BNC: packed start noise, as from `start_noise`.
        guidance: value of the guidance embedding (distilled guidance: one pass per step).
    """
    tokens = caption_tokens(prompts)
    text = models.text_encoder_2(tokens)[0]
    pooled = models.text_encoder(tokens).pooler_output
    grid = (height // (2 * VAE_FACTOR), width // (2 * VAE_FACTOR))
    angles = rotary(models.transformer, text_tokens=TEXT_LENGTH, image_ids=image_ids(*grid))
    x, levels = noise_BNC, sigmas(steps, shift=shift)
    scale = torch.full((len(prompts),), guidance)
    for now, after in pairwise(levels):
        v = velocity(
            models.transformer,
            x,
            time_B=now.expand(len(prompts)),
            guidance_B=scale,
            text_BTW=text,
            pooled_BW=pooled,
            rotary_LD=angles,
        )
        x = x + (after - now) * v
    latents = FluxPipeline._unpack_latents(x, height, width, VAE_FACTOR)
    return vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample.clamp(-1, 1)


def start_noise(count: int, *, height: int, width: int, source: torch.Generator) -> Tensor:
    """Packed Gaussian noise [B, N, C] for pictures of a size."""
    tokens = (height // (2 * VAE_FACTOR)) * (width // (2 * VAE_FACTOR))
    return torch.randn(count, tokens, 4 * LATENT_CHANNELS, generator=source)


def load_pipeline_models(directory: Path) -> tuple[FluxModels, AutoencoderKL, float]:
    """Models, autoencoder and timestep shift of a pipeline directory, in fp32."""
    models = FluxModels(
        FluxTransformer2DModel.from_pretrained(directory / "transformer", torch_dtype=torch.float32).eval(),
        CLIPTextModel.from_pretrained(directory / "text_encoder", dtype=torch.float32).eval(),
        T5EncoderModel.from_pretrained(directory / "text_encoder_2", dtype=torch.float32).eval(),
    )
    vae = AutoencoderKL.from_pretrained(directory / "vae", torch_dtype=torch.float32).eval()
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(directory / "scheduler")
    return models, vae, float(scheduler.config.shift)
