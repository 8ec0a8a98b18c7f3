"""FLUX: the mini world's directory and FLUX.1-dev are the same class.

Follows diffusers' FluxPipeline in every convention (2x2 packing, position ids, time and guidance).

Shape legend: B batch, C latent channels, H W latent height and width, T packed tokens.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn

from metalora.backbones.backbone import DiffusersBackbone, linears, load_backbone
from metalora.backbones.directory import PipelineDirectory
from metalora.core.contracts import Drawing, TextEmbedding
from metalora.core.flow import RectifiedFlow

BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")


def load_flux(path: str | Path, *, name: str, max_text_tokens: int = 512, **options: Any) -> DiffusersBackbone:
    """Open a FluxPipeline directory or hub id; options as in `load_backbone`."""
    return load_backbone(path, Flux(), name=name, max_text_tokens=max_text_tokens, **options)


class Flux:
    """FLUX's conventions; implements `metalora.backbones.backbone.Family`."""

    pipeline: Any = FluxPipeline
    model: Any = FluxTransformer2DModel
    component: str = "transformer"
    unused: Mapping[str, Any] = {}

    def objective(self, directory: PipelineDirectory, scheduler: Any) -> RectifiedFlow:
        """Rectified flow."""
        return RectifiedFlow()

    def needs_empty_prompt(self, directory: PipelineDirectory) -> bool:
        """Guidance is distilled."""
        return False

    def pixel_multiple(self, directory: PipelineDirectory) -> int:
        """2x2 latents are packed into a token."""
        return 2 * directory.vae_factor

    def targets(self, denoiser: nn.Module) -> dict[str, nn.Linear]:
        """Every Linear inside the double and single blocks, modulation included."""
        return block_linears(denoiser)

    def embed(self, pipeline: Any, captions: Sequence[str], *, max_text_tokens: int | None) -> TextEmbedding:
        """T5's tokens and CLIP's pooled embedding."""
        tokens_BLD, pooled_BP, _ = pipeline.encode_prompt(
            prompt=captions, prompt_2=None, device=pipeline.text_encoder.device, max_sequence_length=max_text_tokens
        )
        return TextEmbedding(tokens_BLD=tokens_BLD, pooled_BP=pooled_BP)

    def predict(
        self,
        denoiser: Any,
        x_t_BCHW: Tensor,
        *,
        t_B: Tensor,
        text: TextEmbedding,
        guidance: float,
        objective: Any,
        vae_factor: int,
    ) -> Tensor:
        """Velocity (noise - latents)."""
        device, dtype = x_t_BCHW.device, x_t_BCHW.dtype
        batch, _, height, width = x_t_BCHW.shape
        guidance_B = None
        if denoiser.config.guidance_embeds:
            guidance_B = torch.full((batch,), guidance, device=device, dtype=torch.float32)
        velocity_BTC = denoiser(
            hidden_states=pack(x_t_BCHW),
            timestep=t_B.to(dtype),
            guidance=guidance_B,
            pooled_projections=text.pooled_BP,
            encoder_hidden_states=text.tokens_BLD,
            txt_ids=torch.zeros(text.tokens_BLD.shape[1], 3, device=device, dtype=dtype),
            img_ids=FluxPipeline._prepare_latent_image_ids(batch, height // 2, width // 2, device, dtype),
            return_dict=False,
        )[0]
        return unpack(velocity_BTC, height=height, width=width)

    def drawing(self, text: TextEmbedding, *, empty: TextEmbedding | None, guidance: float) -> Drawing:
        """Guidance is distilled: one pass, no empty prompt."""
        arguments = {
            "prompt_embeds": text.tokens_BLD,
            "pooled_prompt_embeds": text.pooled_BP,
            "guidance_scale": guidance,
        }
        return Drawing(arguments, copies=1)


def block_linears(transformer: nn.Module) -> dict[str, nn.Linear]:
    """The Linear layers inside a FLUX transformer's blocks: 494 of them in FLUX.1-dev."""
    return linears(transformer, within=BLOCKS)


def pack(latents_BCHW: Tensor) -> Tensor:
    """2x2 latents into a token: [B, H/2 * W/2, 4C]."""
    batch, channels, height, width = latents_BCHW.shape
    return FluxPipeline._pack_latents(latents_BCHW.contiguous(), batch, channels, height, width)


def unpack(packed_BTC: Tensor, *, height: int, width: int) -> Tensor:
    """The inverse of `pack`, to latents of the given height and width."""
    return FluxPipeline._unpack_latents(packed_BTC, height, width, vae_scale_factor=1)
