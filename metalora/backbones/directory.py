"""A diffusers pipeline on disk: whether it is whole, what it is, and what goes wrong with it in one line."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from metalora.backbones.fingerprint import fingerprint
from metalora.core.errors import UserError
from metalora.hub import model_directory

DTYPES = ("float32", "bfloat16", "float16")
LOCAL: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
"""How every part of a pipeline is read: never a pickle, never from the network."""


@dataclass(frozen=True)
class PipelineDirectory:
    """A folder as saved by a diffusers pipeline's `save_pretrained`."""

    folder: Path
    component: str
    """The denoiser's folder: transformer or unet."""

    @cached_property
    def index(self) -> dict[str, Any]:
        """model_index.json: part -> [library, class], and the pipeline's own settings."""
        with readable(self.folder):
            return json.loads((self.folder / "model_index.json").read_text())

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """The text encoders' folders."""
        found = (name for name, kind in self.index.items() if name.startswith("text_encoder") and kind[0] is not None)
        return tuple(sorted(found))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the denoiser's configuration and weights (sampled when large)."""
        with readable(self.folder):
            return fingerprint(self.folder / self.component)

    @cached_property
    def encoder_fingerprint(self) -> str:
        """sha256 over the autoencoder's configuration and weights: cached latents belong to it."""
        with readable(self.folder):
            return fingerprint(self.folder / "vae")

    @cached_property
    def text_fingerprint(self) -> str:
        """sha256 over the text encoders' configurations and weights: cached text embeddings belong to it."""
        with readable(self.folder):
            parts = [fingerprint(self.folder / name) for name in self.text_encoders]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    @cached_property
    def vae_factor(self) -> int:
        """Pixels per latent."""
        with readable(self.folder):
            configuration = json.loads((self.folder / "vae" / "config.json").read_text())
            return 2 ** (len(configuration["block_out_channels"]) - 1)


def open_directory(path: str | Path, *, pipeline: str, component: str) -> PipelineDirectory:
    """Look at a pipeline directory; no weights are read.

    Args:
        path: a folder, or a hub id (ORG/NAME, ORG/NAME@REVISION).
        pipeline: the pipeline's class name.
        component: the denoiser's folder.

    Raises:
        UserError: no such directory, another pipeline's, without safetensors weights or with a shard missing; a hub id
            that cannot be had.
    """
    folder = model_directory(path)
    if not folder.is_dir():
        problem = f"{folder}, which is no directory"
    elif not (folder / "model_index.json").is_file():
        problem = f"{folder}, which has no model_index.json"
    else:
        with readable(folder):
            kind = json.loads((folder / "model_index.json").read_text())["_class_name"]
        if kind != pipeline:
            problem = f"a {kind} in {folder}"
        elif not list((folder / component).glob("*.safetensors")):
            problem = f"no safetensors weights in {folder / component}"
        else:
            problem = _lacking_shard(folder)
    if problem:
        raise UserError(
            "the backbone cannot be opened",
            expected=f"a {pipeline} directory with safetensors weights",
            got=problem,
            key="backbone.path",
        )
    return PipelineDirectory(folder, component)


def torch_dtype(name: torch.dtype | str) -> torch.dtype:
    """A dtype by its name.

    Raises:
        UserError: another than float32, bfloat16 and float16.
    """
    word = str(name).removeprefix("torch.")
    if word not in DTYPES:
        raise UserError("an unknown dtype", expected=" or ".join(DTYPES), got=str(name), key="backbone.dtype")
    return getattr(torch, word)


def _lacking_shard(folder: Path) -> str:
    """A weights file that an index names and nobody downloaded: said before an hour of encoding, not after."""
    for index in sorted(folder.glob("*/*.safetensors.index.json")):
        with readable(folder):
            named = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if missing := [name for name in named if not (index.parent / name).is_file()]:
            return f"no {', '.join(missing)} of its index in {index.parent}"
    return ""


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Turn what diffusers and transformers raise on a broken directory into one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(
            f"the backbone in {folder} cannot be read",
            expected="a whole pipeline directory with safetensors weights",
            got=f"{type(error).__name__}: {error}".splitlines()[0],
            key="backbone.path",
        ) from error
