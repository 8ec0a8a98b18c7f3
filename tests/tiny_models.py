"""Complete but tiny random models on disk, for any test."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

WORDS = ["<pad>", "<unk>", "a", "photo", "of", "man", "woman", "pencil", "drawing", "on", "beach", "</s>"]
TEXT_TOKENS = 8
TEXT_WIDTH = 16


def make_tiny_flux(folder: Path, *, seed: int = 0, max_shard_size: str = "10GB", **transformer: Any) -> None:
    """Save a FluxPipeline of 1 double and 1 single block, 2 heads of 16, autoencoder factor 4, 4 latent channels.

    Args:
        max_shard_size: of the weights' files; what is larger is split and gets an index, as on the hub.
        transformer: other values of the transformer's configuration.
    """
    torch.manual_seed(seed)
    configuration: dict[str, Any] = {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": TEXT_WIDTH,
        "pooled_projection_dim": TEXT_WIDTH,
        "guidance_embeds": True,
        "axes_dims_rope": (4, 6, 6),
    }
    denoiser = FluxTransformer2DModel(**(configuration | transformer))
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
        transformer=denoiser,
    ).save_pretrained(folder, max_shard_size=max_shard_size)


def make_tiny_sd(folder: Path, *, xl: bool, seed: int = 0, prediction: str = "epsilon") -> None:
    """Save a StableDiffusionPipeline (or XL) of two levels, autoencoder factor 2, 4 latent channels."""
    torch.manual_seed(seed)
    width = TEXT_WIDTH * (2 if xl else 1)
    extra: dict[str, Any] = {}
    if xl:
        extra = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + TEXT_WIDTH,
            "transformer_layers_per_block": (1, 2),
            "use_linear_projection": True,
        }
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=(1, 2),
        norm_num_groups=4,
        **extra,
    )
    noise = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "prediction_type": prediction,
    }
    parts = {"vae": _vae(scaling_factor=0.18215), "unet": unet, "tokenizer": _tokenizer()}
    parts["text_encoder"] = _clip(CLIPTextModel)
    if xl:
        parts |= {"text_encoder_2": _clip(CLIPTextModelWithProjection), "tokenizer_2": _tokenizer()}
        StableDiffusionXLPipeline(scheduler=EulerDiscreteScheduler(**noise), **parts).save_pretrained(folder)
    else:
        scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **noise)
        unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        StableDiffusionPipeline(scheduler=scheduler, **parts, **unused).save_pretrained(folder)


def make_tiny_sd3(folder: Path, *, seed: int = 0) -> None:
    """Save a StableDiffusion3Pipeline of two blocks, the first with two attentions as in 3.5; autoencoder factor 2."""
    torch.manual_seed(seed)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * TEXT_WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    t5 = T5Config(
        vocab_size=len(WORDS), d_model=2 * TEXT_WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2, pad_token_id=0
    )
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0),
        vae=_vae(latent_channels=16, scaling_factor=1.5, shift_factor=0.1),
        text_encoder=_clip(CLIPTextModelWithProjection),
        tokenizer=_tokenizer(),
        text_encoder_2=_clip(CLIPTextModelWithProjection),
        tokenizer_2=_tokenizer(),
        text_encoder_3=T5EncoderModel(t5),
        tokenizer_3=_tokenizer(),
    ).save_pretrained(folder)


def _vae(*, latent_channels: int = 4, **config: float) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=16,
        **config,
    )


def _clip(kind: type) -> Any:
    return kind(
        CLIPTextConfig(
            vocab_size=len(WORDS),
            hidden_size=TEXT_WIDTH,
            intermediate_size=32,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TEXT_TOKENS,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=len(WORDS) - 1,
        )
    )


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
