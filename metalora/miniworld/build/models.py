"""Architectures of the tiny models; every size of the mini world's networks stands here.

The classes are the real ones (diffusers, transformers, open_clip); only the numbers are small. Image sides are
multiples of 8: the autoencoder has factor 4 and FLUX packs 2x2 latents into a token, so 64 px are 64 tokens.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

LATENT_CHANNELS = 8
TEXT_LENGTH = 24
"""Tokens of a padded caption, in T5, CLIP and mini-CLIP alike, end mark included."""
TEXT_WIDTH = 96
VAE_FACTOR = 4


@dataclass(frozen=True)
class FluxModels:
    """The trainable part of the pipeline: transformer and both text encoders."""

    transformer: FluxTransformer2DModel
    text_encoder: CLIPTextModel
    text_encoder_2: T5EncoderModel

    def named_modules(self) -> dict[str, nn.Module]:
        """The three models by their name in the pipeline directory."""
        return {
            "transformer": self.transformer,
            "text_encoder": self.text_encoder,
            "text_encoder_2": self.text_encoder_2,
        }


def make_vae(*, widths: tuple[int, int, int] = (16, 32, 64), seed: int) -> AutoencoderKL:
    """A fully convolutional autoencoder: factor 4, 8 latent channels, no attention, any size divisible by 4."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def make_flux(*, vocabulary: int, seed: int, double: int = 3, single: int = 3) -> FluxModels:
    """FLUX with the guidance embedding, 4 heads of 32, and text encoders of 2 layers; the end mark is the last word.

    Args:
        vocabulary: size of the word list; pad is 0 and the end mark `vocabulary - 1`.
    """
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * LATENT_CHANNELS,
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=3,
            max_position_embeddings=TEXT_LENGTH,
            hidden_act="quick_gelu",
            pad_token_id=0,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
        )
    )
    text_encoder_2 = T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=TEXT_WIDTH,
            d_kv=32,
            d_ff=2 * TEXT_WIDTH,
            num_layers=2,
            num_heads=3,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=vocabulary - 1,
            tie_word_embeddings=False,
        )
    )
    return FluxModels(transformer, text_encoder, text_encoder_2)


def make_scheduler(*, shift: float = 1.0) -> FlowMatchEulerDiscreteScheduler:
    """The pipeline's Euler sampler with a fixed timestep shift."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift, use_dynamic_shifting=False)


def clip_config(*, vocabulary: int) -> dict[str, Any]:
    """The open_clip model configuration of mini-CLIP: a ResNet and a text transformer of 1.7 M parameters."""
    return {
        "embed_dim": 96,
        "vision_cfg": {"image_size": 64, "layers": [2, 2, 2, 1], "width": 16, "head_width": 32},
        "text_cfg": {
            "context_length": TEXT_LENGTH,
            "vocab_size": vocabulary,
            "width": 96,
            "heads": 3,
            "layers": 2,
            "hf_tokenizer_name": "mini",
            "pool_type": "argmax",
        },
    }
