"""Fixtures that several test modules share: a complete but tiny random FLUX on disk."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from metalora.backbones.flux import FluxBackbone, load_flux

WORDS = ["<pad>", "<unk>", "a", "photo", "of", "man", "woman", "pencil", "drawing", "on", "beach", "</s>"]
TEXT_TOKENS = 8
TEXT_WIDTH = 16


def make_tiny_flux(folder: Path, *, seed: int = 0) -> None:
    """Save a FluxPipeline of 1 double and 1 single block, 2 heads of 16, autoencoder factor 4, 4 latent channels."""
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=0.5,
        shift_factor=0.1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(WORDS),
            hidden_size=TEXT_WIDTH,
            intermediate_size=32,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=TEXT_TOKENS,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=len(WORDS) - 1,
        )
    )
    t5 = T5EncoderModel(
        T5Config(vocab_size=len(WORDS), d_model=TEXT_WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2, pad_token_id=0)
    )
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
    FluxPipeline(
        scheduler=scheduler,
        vae=vae,
        text_encoder=clip,
        tokenizer=_tokenizer(),
        text_encoder_2=t5,
        tokenizer_2=_tokenizer(),
        transformer=transformer,
    ).save_pretrained(folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", len(WORDS) - 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        model_max_length=TEXT_TOKENS,
    )


@pytest.fixture(scope="session")
def tiny_flux_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random FluxPipeline directory that stock diffusers loads."""
    folder = tmp_path_factory.mktemp("tiny_flux")
    make_tiny_flux(folder)
    return folder


@pytest.fixture
def tiny_backbone(tiny_flux_dir: Path) -> FluxBackbone:
    """A fresh backbone around `tiny_flux_dir`; images of 16 or 24 px are enough."""
    return load_flux(tiny_flux_dir, name="tiny", max_text_tokens=TEXT_TOKENS)
