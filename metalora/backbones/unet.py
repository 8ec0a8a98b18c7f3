"""Stable Diffusion 1.5 and SDXL: a U-Net whose attention layers carry the adapters.

Follows diffusers' StableDiffusionPipeline and StableDiffusionXLPipeline in every convention (steps, size conditioning,
classifier-free guidance).

Shape legend: B batch, C latent channels, H W latent height and width.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn

from metalora.backbones.backbone import DiffusersBackbone, load_backbone, with_empty_prompt
from metalora.backbones.directory import PipelineDirectory, readable
from metalora.core.contracts import Drawing, TextEmbedding
from metalora.core.diffusion import PREDICTIONS, Diffusion
from metalora.core.errors import UserError

_ATTENTION = re.compile(r"\.attn[12]\.to_(q|k|v|out\.0)$")


def load_sd15(path: str | Path, *, name: str, **options: Any) -> DiffusersBackbone:
    """Open a StableDiffusionPipeline directory or hub id; options as in `load_backbone`."""
    return load_backbone(path, StableDiffusion(), name=name, **options)


def load_sdxl(path: str | Path, *, name: str, **options: Any) -> DiffusersBackbone:
    """Open a StableDiffusionXLPipeline directory or hub id; options as in `load_backbone`."""
    return load_backbone(path, StableDiffusionXL(), name=name, **options)


class StableDiffusion:
    """Stable Diffusion 1.5's conventions; implements `metalora.backbones.backbone.Family`."""

    pipeline: Any = StableDiffusionPipeline
    model: Any = UNet2DConditionModel
    component: str = "unet"
    unused: Mapping[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    """Parts that look at finished images."""

    def objective(self, directory: PipelineDirectory, scheduler: Any) -> Diffusion:
        """By the scheduler: what is predicted, and how noise grows."""
        return unet_objective(directory, scheduler)

    def needs_empty_prompt(self, directory: PipelineDirectory) -> bool:
        """Guided against the embedding of ""."""
        return True

    def pixel_multiple(self, directory: PipelineDirectory) -> int:
        """The latents are halved on the way down and have to come back to size."""
        return unet_multiple(directory)

    def targets(self, denoiser: nn.Module) -> dict[str, nn.Linear]:
        """Query, key, value and output of every self- and cross-attention."""
        return attention_linears(denoiser)

    def embed(self, pipeline: Any, captions: Sequence[str], *, max_text_tokens: int | None) -> TextEmbedding:
        """CLIP's tokens; nothing is pooled: [B, 0]."""
        tokens_BLD, _ = pipeline.encode_prompt(captions, pipeline.text_encoder.device, 1, False)
        return TextEmbedding(tokens_BLD, tokens_BLD.new_zeros(len(captions), 0))

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
        """The noise (or v) at time t = k / T; guidance is nothing the U-Net is told."""
        return denoiser(x_t_BCHW, objective.step_of(t_B), encoder_hidden_states=text.tokens_BLD, return_dict=False)[0]

    def drawing(self, text: TextEmbedding, *, empty: TextEmbedding | None, guidance: float) -> Drawing:
        """Classifier-free guidance against ""."""
        assert empty is not None or guidance <= 1
        return with_empty_prompt(text, empty, guidance=guidance, pooled=False)


class StableDiffusionXL:
    """SDXL's conventions; implements `metalora.backbones.backbone.Family`."""

    pipeline: Any = StableDiffusionXLPipeline
    model: Any = UNet2DConditionModel
    component: str = "unet"
    unused: Mapping[str, Any] = {}

    def objective(self, directory: PipelineDirectory, scheduler: Any) -> Diffusion:
        """By the scheduler: what is predicted, and how noise grows."""
        return unet_objective(directory, scheduler)

    def needs_empty_prompt(self, directory: PipelineDirectory) -> bool:
        """The directory says whether the empty prompt is all zeros, as it is for SDXL base."""
        return not directory.index.get("force_zeros_for_empty_prompt", True)

    def pixel_multiple(self, directory: PipelineDirectory) -> int:
        """The latents are halved on the way down and have to come back to size."""
        return unet_multiple(directory)

    def targets(self, denoiser: nn.Module) -> dict[str, nn.Linear]:
        """Query, key, value and output of every self- and cross-attention."""
        return attention_linears(denoiser)

    def embed(self, pipeline: Any, captions: Sequence[str], *, max_text_tokens: int | None) -> TextEmbedding:
        """Both encoders' tokens side by side, and the second one's pooled embedding."""
        tokens_BLD, _, pooled_BP, _ = pipeline.encode_prompt(
            captions, device=pipeline.text_encoder.device, do_classifier_free_guidance=False
        )
        return TextEmbedding(tokens_BLD, pooled_BP)

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
        """The noise (or v) at time t = k / T of an image that is whole, uncropped and of this very size."""
        batch, _, height, width = x_t_BCHW.shape
        size = [height * vae_factor, width * vae_factor]
        time_ids_B6 = torch.tensor([[*size, 0, 0, *size]] * batch, dtype=x_t_BCHW.dtype).to(x_t_BCHW.device)
        return denoiser(
            x_t_BCHW,
            objective.step_of(t_B),
            encoder_hidden_states=text.tokens_BLD,
            added_cond_kwargs={"text_embeds": text.pooled_BP, "time_ids": time_ids_B6},
            return_dict=False,
        )[0]

    def drawing(self, text: TextEmbedding, *, empty: TextEmbedding | None, guidance: float) -> Drawing:
        """Classifier-free guidance against the empty prompt, zeros or embedded."""
        return with_empty_prompt(text, empty, guidance=guidance, pooled=True)


def attention_linears(unet: nn.Module) -> dict[str, nn.Linear]:
    """Query, key, value and output projections of a U-Net's attention layers."""
    return {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear) and _ATTENTION.search(name)
    }


def unet_objective(directory: PipelineDirectory, scheduler: Any) -> Diffusion:
    """What a U-Net predicts at which noise, by its pipeline's scheduler.

    Raises:
        UserError: a prediction that is neither the noise nor v.
    """
    prediction = scheduler.config.prediction_type
    if prediction not in PREDICTIONS:
        raise UserError(
            f"the model in {directory.folder} was trained for something else",
            expected=" or ".join(PREDICTIONS),
            got=str(prediction),
            key="backbone.path",
        )
    return Diffusion(scheduler.alphas_cumprod.clone(), prediction)


def unet_multiple(directory: PipelineDirectory) -> int:
    """Pixels that image sides must be multiples of: every level but the last halves the latents."""
    with readable(directory.folder):
        config = json.loads((directory.folder / "unet" / "config.json").read_text())
    return directory.vae_factor * 2 ** (len(config["block_out_channels"]) - 1)
