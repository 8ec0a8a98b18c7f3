"""Stable Diffusion 3 and 3.5: a flow transformer guided without distillation.

Follows diffusers' StableDiffusion3Pipeline in every convention.

Shape legend: B batch, C latent channels, H W latent height and width.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn

from metalora.backbones.backbone import DiffusersBackbone, linears, load_backbone, with_empty_prompt
from metalora.backbones.directory import PipelineDirectory
from metalora.core.contracts import Drawing, TextEmbedding
from metalora.core.flow import RectifiedFlow

TIMES = 1000
"""The transformer is told 1000 * t."""


def load_sd3(path: str | Path, *, name: str, max_text_tokens: int = 256, **options: Any) -> DiffusersBackbone:
    """Open a StableDiffusion3Pipeline directory or hub id; options as in `load_backbone`."""
    return load_backbone(path, StableDiffusion3(), name=name, max_text_tokens=max_text_tokens, **options)


class StableDiffusion3:
    """Stable Diffusion 3's conventions; implements `metalora.backbones.backbone.Family`."""

    pipeline: Any = StableDiffusion3Pipeline
    model: Any = SD3Transformer2DModel
    component: str = "transformer"
    unused: Mapping[str, Any] = {}

    def objective(self, directory: PipelineDirectory, scheduler: Any) -> RectifiedFlow:
        """Rectified flow."""
        return RectifiedFlow()

    def needs_empty_prompt(self, directory: PipelineDirectory) -> bool:
        """Guided against the embedding of ""."""
        return True

    def pixel_multiple(self, directory: PipelineDirectory) -> int:
        """2x2 latents are a patch."""
        return 2 * directory.vae_factor

    def targets(self, denoiser: nn.Module) -> dict[str, nn.Linear]:
        """Every Linear inside the blocks, modulation included, as for FLUX."""
        return linears(denoiser, within=("transformer_blocks.",))

    def embed(self, pipeline: Any, captions: Sequence[str], *, max_text_tokens: int | None) -> TextEmbedding:
        """The tokens of two CLIPs and a T5, and what the CLIPs pool."""
        tokens_BLD, _, pooled_BP, _ = pipeline.encode_prompt(
            captions,
            None,
            None,
            device=pipeline.text_encoder.device,
            do_classifier_free_guidance=False,
            max_sequence_length=max_text_tokens,
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
        """Velocity (noise - latents); guidance is nothing the transformer is told."""
        return denoiser(
            hidden_states=x_t_BCHW,
            timestep=t_B * TIMES,
            encoder_hidden_states=text.tokens_BLD,
            pooled_projections=text.pooled_BP,
            return_dict=False,
        )[0]

    def drawing(self, text: TextEmbedding, *, empty: TextEmbedding | None, guidance: float) -> Drawing:
        """Classifier-free guidance against ""."""
        assert empty is not None or guidance <= 1
        return with_empty_prompt(text, empty, guidance=guidance, pooled=True)
