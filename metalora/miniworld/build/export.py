"""Write trained models as the directories that stock libraries load: FluxPipeline, open_clip, face embedder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor, nn

from metalora.core.atomic import atomic_path, write_bytes, write_json
from metalora.miniworld.build.models import FluxModels, clip_config, make_scheduler
from metalora.miniworld.build.wordlist import make_tokenizer, save_tokenizer

CLIP_MEAN, CLIP_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a safetensors file, floats as bf16, atomically and in a fixed order."""
    stored = {
        name: (value.to(torch.bfloat16) if value.is_floating_point() else value).detach().contiguous().clone()
        for name, value in sorted(tensors.items())
    }
    with atomic_path(path) as temporary:
        save_file(stored, temporary, metadata={"format": "pt"})


def _write_config(path: Path, config: str, **extra: str) -> None:
    kept = {key: value for key, value in json.loads(config).items() if key not in ("_name_or_path", "dtype")}
    write_json(path, kept | extra)


def export_vae(directory: Path, *, vae: AutoencoderKL) -> None:
    """Write the `vae` folder of a pipeline."""
    _write_config(directory / "vae" / "config.json", vae.to_json_string())
    write_weights(directory / "vae" / "diffusion_pytorch_model.safetensors", vae.state_dict())


def export_flux(directory: Path, *, models: FluxModels, shift: float) -> None:
    """Write everything of a FluxPipeline directory but the `vae` folder."""
    _write_config(directory / "transformer" / "config.json", models.transformer.to_json_string())
    write_weights(directory / "transformer" / "diffusion_pytorch_model.safetensors", models.transformer.state_dict())
    for name, encoder in (("text_encoder", models.text_encoder), ("text_encoder_2", models.text_encoder_2)):
        encoder.config.architectures = [type(encoder).__name__]
        _write_config(directory / name / "config.json", encoder.config.to_json_string(use_diff=True), dtype="float32")
        state = encoder.state_dict()
        state.pop("encoder.embed_tokens.weight", None)  # the same tensor as T5's `shared.weight`
        write_weights(directory / name / "model.safetensors", state)
    make_scheduler(shift=shift).save_pretrained(directory / "scheduler")
    save_tokenizer(directory / "tokenizer")
    save_tokenizer(directory / "tokenizer_2")
    write_json(directory / "model_index.json", _model_index())


def _model_index() -> dict[str, Any]:
    return {
        "_class_name": "FluxPipeline",
        "_diffusers_version": "0.35.0",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "tokenizer_2": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def export_face(directory: Path, *, model: nn.Module, config: Mapping[str, Any]) -> None:
    """Write the face embedder: config.json and model.safetensors."""
    write_json(directory / "config.json", dict(config))
    write_weights(directory / "model.safetensors", model.state_dict())


def export_clip(directory: Path, *, model: nn.Module) -> None:
    """Write mini-CLIP as open_clip's `local-dir:` layout, tokenizer included."""
    config = {
        "model_cfg": clip_config(vocabulary=len(make_tokenizer())),
        "preprocess_cfg": {
            "mean": list(CLIP_MEAN),
            "std": list(CLIP_STD),
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    }
    save_tokenizer(directory)
    write_json(directory / "open_clip_config.json", config)
    write_weights(directory / "open_clip_model.safetensors", model.state_dict())


def write_readme(directory: Path, text: str) -> None:
    """Write the weights' README."""
    write_bytes(directory / "README.md", text.encode())
