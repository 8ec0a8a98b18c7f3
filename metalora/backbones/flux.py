"""FLUX as a frozen backbone: the mini world's directory and FLUX.1-dev are the same class.

Follows diffusers' FluxPipeline in every convention (2x2 packing, position ids, time and guidance), and takes text
embeddings from the pipeline itself, so what is trained here is what the stock pipeline samples.

Shape legend: B batch, C latent channels, H W latent height and width, T packed tokens, L text tokens, D text width.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors import SafetensorError
from torch import Tensor, nn

from metalora.backbones.fingerprint import fingerprint
from metalora.core.contracts import TextEmbedding
from metalora.core.errors import UserError

BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")
DTYPES = ("float32", "bfloat16", "float16")
_LOCAL: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
ENCODERS = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")


def load_flux(
    path: str | Path,
    *,
    name: str,
    dtype: torch.dtype | str = torch.float32,
    device: str | torch.device = "cpu",
    max_text_tokens: int = 512,
    gradient_checkpointing: bool = False,
) -> "FluxBackbone":
    """Open a FluxPipeline directory; weights are read when they are first used.

    Args:
        path: directory as saved by `FluxPipeline.save_pretrained`.
        name: the backbone's name in the configuration.
        dtype: of all weights, a torch dtype or its name: float32, bfloat16 or float16. Adapters stay float32.
        max_text_tokens: T5 tokens per caption, padding included.

    Raises:
        UserError: no such directory, or not a FluxPipeline's with safetensors weights; an unknown dtype.
    """
    if str(dtype).removeprefix("torch.") not in DTYPES:
        raise UserError("an unknown dtype", expected=" or ".join(DTYPES), got=str(dtype), key="backbone.dtype")
    folder = Path(path)
    _check_directory(folder)
    return FluxBackbone(
        folder,
        name=name,
        dtype=getattr(torch, str(dtype).removeprefix("torch.")),
        device=torch.device(device),
        max_text_tokens=max_text_tokens,
        gradient_checkpointing=gradient_checkpointing,
    )


class FluxBackbone:
    """A frozen FLUX model; implements `metalora.core.contracts.Backbone`. Made by `load_flux`."""

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        dtype: torch.dtype,
        device: torch.device,
        max_text_tokens: int,
        gradient_checkpointing: bool,
    ) -> None:
        self.folder, self.name = folder, name
        self.dtype, self.device = dtype, device
        self.max_text_tokens = max_text_tokens
        self.gradient_checkpointing = gradient_checkpointing
        self._encoders: FluxPipeline | None = None

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the transformer's configuration and weights (sampled when large)."""
        return fingerprint(self.folder / "transformer")

    @cached_property
    def encoder_fingerprint(self) -> str:
        """sha256 over the autoencoder's configuration and weights: cached latents belong to it."""
        return fingerprint(self.folder / "vae")

    @cached_property
    def text_fingerprint(self) -> str:
        """sha256 over both text encoders' configurations and weights: cached text embeddings belong to it."""
        parts = [fingerprint(self.folder / name) for name in ("text_encoder", "text_encoder_2")]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    @cached_property
    def transformer(self) -> FluxTransformer2DModel:
        """The denoiser: frozen, in eval mode."""
        with _readable(self.folder):
            transformer = FluxTransformer2DModel.from_pretrained(
                self.folder, subfolder="transformer", dtype=self.dtype, **_LOCAL
            )
        transformer.requires_grad_(False).eval()
        nn.Module.to(transformer, self.device)
        if self.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        return transformer

    @cached_property
    def vae_factor(self) -> int:
        """Pixels per latent."""
        with _readable(self.folder):
            configuration = json.loads((self.folder / "vae" / "config.json").read_text())
            return 2 ** (len(configuration["block_out_channels"]) - 1)

    @property
    def pixel_multiple(self) -> int:
        """Image sides must be multiples of this: FLUX packs 2x2 latents into a token."""
        return 2 * self.vae_factor

    @torch.no_grad()
    def encode_image(self, pixels_B3HW: Tensor) -> Tensor:
        """Pixels in [-1, 1] to shifted and scaled latents [B, C, H/f, W/f], float32 (the posterior's mode)."""
        vae = self._encoder_pipeline().vae
        posterior = vae.encode(pixels_B3HW.to(self.device, self.dtype)).latent_dist
        return ((posterior.mode() - vae.config.shift_factor) * vae.config.scaling_factor).float()

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> TextEmbedding:
        """Embed captions exactly as the pipeline embeds prompts."""
        pipeline = self._encoder_pipeline()
        tokens_BLD, pooled_BP, _ = pipeline.encode_prompt(
            prompt=list(captions), prompt_2=None, device=self.device, max_sequence_length=self.max_text_tokens
        )
        assert tokens_BLD is not None and pooled_BP is not None
        return TextEmbedding(tokens_BLD=tokens_BLD, pooled_BP=pooled_BP)

    def predict(self, x_t_BCHW: Tensor, *, t_B: Tensor, text: TextEmbedding, guidance: float) -> Tensor:
        """Velocity (noise - latents) at time t in [0, 1], 1 = noise; [B, C, H, W] in the transformer's dtype."""
        transformer = self.transformer
        batch, _, height, width = x_t_BCHW.shape
        hidden_BTC = pack(x_t_BCHW.to(self.device, self.dtype))
        guidance_B = None
        if transformer.config.guidance_embeds:
            guidance_B = torch.full((batch,), guidance, device=self.device, dtype=torch.float32)
        velocity_BTC = transformer(
            hidden_states=hidden_BTC,
            timestep=t_B.to(self.device, self.dtype),
            guidance=guidance_B,
            pooled_projections=text.pooled_BP.to(self.device, self.dtype),
            encoder_hidden_states=text.tokens_BLD.to(self.device, self.dtype),
            txt_ids=torch.zeros(text.tokens_BLD.shape[1], 3, device=self.device, dtype=self.dtype),
            img_ids=FluxPipeline._prepare_latent_image_ids(batch, height // 2, width // 2, self.device, self.dtype),
            return_dict=False,
        )[0]
        return unpack(velocity_BTC, height=height, width=width)

    def target_layers(self) -> dict[str, nn.Linear]:
        """Every Linear inside the double and single blocks, modulation included, by dotted name in module order."""
        return block_linears(self.transformer)

    def release_encoders(self) -> None:
        """Drop autoencoder and text encoders; what needs them afterwards reads them again."""
        self._encoders = None

    def pipeline(self) -> FluxPipeline:
        """The stock pipeline around this very transformer."""
        encoders = self._encoder_pipeline()
        return FluxPipeline(
            scheduler=encoders.scheduler,
            transformer=self.transformer,
            **{name: getattr(encoders, name) for name in ENCODERS},
        )

    def _encoder_pipeline(self) -> FluxPipeline:
        if self._encoders is None:
            with _readable(self.folder):
                encoders = FluxPipeline.from_pretrained(self.folder, transformer=None, dtype=self.dtype, **_LOCAL)
            encoders.set_progress_bar_config(disable=True)
            for name in ("vae", "text_encoder", "text_encoder_2"):
                getattr(encoders, name).requires_grad_(False).eval().to(self.device)
            self._encoders = encoders
        return self._encoders


def block_linears(transformer: nn.Module) -> dict[str, nn.Linear]:
    """The Linear layers inside a FLUX transformer's blocks: 494 of them in FLUX.1-dev."""
    return {
        name: module
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(BLOCKS)
    }


def pack(latents_BCHW: Tensor) -> Tensor:
    """2x2 latents into a token: [B, H/2 * W/2, 4C]."""
    batch, channels, height, width = latents_BCHW.shape
    return FluxPipeline._pack_latents(latents_BCHW.contiguous(), batch, channels, height, width)


def unpack(packed_BTC: Tensor, *, height: int, width: int) -> Tensor:
    """The inverse of `pack`, to latents of the given height and width."""
    return FluxPipeline._unpack_latents(packed_BTC, height, width, vae_scale_factor=1)


def _check_directory(folder: Path) -> None:
    problem = ""
    if not folder.is_dir():
        problem = f"{folder}, which is no directory"
    elif not (folder / "model_index.json").is_file():
        problem = f"{folder}, which has no model_index.json"
    else:
        with _readable(folder):
            kind = json.loads((folder / "model_index.json").read_text())["_class_name"]
        if kind != "FluxPipeline":
            problem = f"a {kind} in {folder}"
        elif not list((folder / "transformer").glob("*.safetensors")):
            problem = f"no safetensors weights in {folder / 'transformer'}"
    if problem:
        raise UserError(
            "the backbone cannot be opened",
            expected="a FluxPipeline directory with safetensors weights",
            got=problem,
            key="backbone.path",
        )


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Turn what diffusers and transformers raise on a broken directory into one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(
            f"the backbone in {folder} cannot be read",
            expected="a whole FluxPipeline directory with safetensors weights",
            got=f"{type(error).__name__}: {error}".splitlines()[0],
            key="backbone.path",
        ) from error
