"""A diffusers pipeline directory as training and generation see it; what differs between models is in its `Family`.

Shape legend: B batch, C latent channels, H W latent height and width.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import diffusers
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from metalora.backbones.attention import use_attention
from metalora.backbones.blocks import checkpoint_blocks, compile_repeated, offload_blocks
from metalora.backbones.directory import LOCAL, PipelineDirectory, open_directory, readable, torch_dtype
from metalora.backbones.quantization import check_quantization, load_quantized
from metalora.core.contracts import Drawing, MemoryUse, Objective, TextEmbedding
from metalora.core.device import explained
from metalora.core.lora import LayerShape
from metalora.core.memory import free_memory

_MEMORY = "memory, trainer.device"


class Family(Protocol):
    """The conventions of one kind of model; everything it does is a plain function of what it is given."""

    pipeline: Any
    """The stock pipeline's class."""
    model: Any
    """The denoiser's class."""
    component: str
    """The denoiser's folder: transformer or unet."""
    unused: Mapping[str, Any]
    """Arguments of the pipeline that keep parts out which are not needed."""

    def objective(self, directory: PipelineDirectory, scheduler: Any) -> Objective:
        """What the denoiser learned."""
        ...

    def needs_empty_prompt(self, directory: PipelineDirectory) -> bool:
        """Whether drawing needs the embedding of "" as well."""
        ...

    def pixel_multiple(self, directory: PipelineDirectory) -> int:
        """Image sides must be multiples of this."""
        ...

    def targets(self, denoiser: nn.Module) -> dict[str, nn.Linear]:
        """The Linear layers that carry adapters by dotted name, in module order."""
        ...

    def embed(self, pipeline: Any, captions: Sequence[str], *, max_text_tokens: int | None) -> TextEmbedding:
        """Embed captions as the pipeline embeds prompts."""
        ...

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
        """One forward pass; x_t and text are on the denoiser's device in its dtype already."""
        ...

    def drawing(self, text: TextEmbedding, *, empty: TextEmbedding | None, guidance: float) -> Drawing:
        """How the pipeline draws embedded prompts."""
        ...


def load_backbone(
    path: str | Path,
    family: Family,
    *,
    name: str,
    dtype: torch.dtype | str = torch.float32,
    device: str | torch.device = "cpu",
    memory: MemoryUse | None = None,
    quantized: str | Path | None = None,
    attention: str | None = None,
    compile_blocks: bool = False,
    max_text_tokens: int | None = None,
) -> "DiffusersBackbone":
    """Open a pipeline directory; weights are read when they are first used.

    Args:
        path: directory as saved by the pipeline's `save_pretrained`, or a hub id (ORG/NAME, ORG/NAME@REVISION).
        family: which kind of model it is.
        name: the backbone's name in the configuration.
        dtype: of all weights, a torch dtype or its name: float32, bfloat16 or float16. Adapters stay float32.
        memory: how the denoiser's memory is saved.
        quantized: where quantized denoisers are kept; needed when `memory` asks for one.
        attention: diffusers' name of an attention backend, "best" for the fastest that is installed; None: torch's own.
        compile_blocks: whether torch compiles the repeated blocks.
        max_text_tokens: T5 tokens per caption, padding included, where there is a T5.

    Raises:
        UserError: no such directory, another pipeline's, without safetensors weights or with a shard missing; an
            unknown dtype; a hub id that cannot be had; a quantization that cannot be had here.
    """
    dtype, device, memory = torch_dtype(dtype), torch.device(device), memory or MemoryUse()
    check_quantization(memory.quantization, device=device)
    directory = open_directory(path, pipeline=family.pipeline.__name__, component=family.component)
    return DiffusersBackbone(
        directory,
        family,
        name=name,
        dtype=dtype,
        device=device,
        memory=memory,
        quantized=None if quantized is None else Path(quantized),
        attention=attention,
        compile_blocks=compile_blocks,
        max_text_tokens=max_text_tokens,
    )


class DiffusersBackbone:
    """A frozen model; implements `metalora.core.contracts.Backbone`. Made by `load_flux` and its siblings.

    Loading the denoiser drops the encoders. Whoever encodes after that has both in memory, as `pipeline()` does, until
    `release_encoders`.
    """

    def __init__(
        self,
        directory: PipelineDirectory,
        family: Family,
        *,
        name: str,
        dtype: torch.dtype,
        device: torch.device,
        memory: MemoryUse,
        quantized: Path | None,
        attention: str | None,
        compile_blocks: bool,
        max_text_tokens: int | None,
    ) -> None:
        self.directory, self.folder, self.family, self.name = directory, directory.folder, family, name
        self.dtype, self.device, self.max_text_tokens = dtype, device, max_text_tokens
        self._memory, self._quantized = memory, quantized
        self._attention, self._compile = attention, compile_blocks
        self.component = family.component
        self._vae: AutoencoderKL | None = None
        self._text: Any = None

    @property
    def memory(self) -> MemoryUse:
        """How the denoiser's memory is saved. One that is loaded follows: it is read again if it has to be."""
        return self._memory

    @memory.setter
    def memory(self, memory: MemoryUse) -> None:
        before, self._memory = self._memory, memory
        denoiser = vars(self).get("denoiser")
        if denoiser is None or before == memory:
            return
        if (before.quantization, before.offload) != (
            memory.quantization,
            memory.offload,
        ) and self.device.type != "meta":
            del vars(self)["denoiser"], denoiser
            free_memory()
        else:
            checkpoint_blocks(denoiser, which=memory.checkpointing)

    @property
    def fingerprint(self) -> str:
        """sha256 over the denoiser's configuration and weights (sampled when large)."""
        return self.directory.fingerprint

    @property
    def encoder_fingerprint(self) -> str:
        """sha256 over the autoencoder's configuration and weights: cached latents belong to it."""
        return self.directory.encoder_fingerprint

    @property
    def text_fingerprint(self) -> str:
        """sha256 over the text encoders' configurations and weights: cached text embeddings belong to it."""
        return self.directory.text_fingerprint

    @cached_property
    def objective(self) -> Objective:
        """What the denoiser learned."""
        return self.family.objective(self.directory, self._scheduler())

    @property
    def needs_empty_prompt(self) -> bool:
        """Whether drawing needs the embedding of "" as well."""
        return self.family.needs_empty_prompt(self.directory)

    @property
    def pixel_multiple(self) -> int:
        """Image sides must be multiples of this."""
        return self.family.pixel_multiple(self.directory)

    @cached_property
    def denoiser(self) -> Any:
        """The transformer or U-Net: frozen, in eval mode. Both encoders leave before it comes."""
        self.release_encoders()
        with explained(key=_MEMORY):
            denoiser = self._read_denoiser()
            denoiser.requires_grad_(False).eval()
            if self.memory.offload:
                offload_blocks(denoiser, device=self.device)
            else:
                nn.Module.to(denoiser, self.device)
        checkpoint_blocks(denoiser, which=self.memory.checkpointing)
        use_attention(denoiser, self._attention)
        if self._compile and not self.memory.offload:  # a compiled block's weights cannot come and go
            compile_repeated(denoiser)
        return denoiser

    def _read_denoiser(self) -> Any:
        if self.memory.quantization is None:
            with readable(self.folder):
                return self.family.model.from_pretrained(
                    self.folder, subfolder=self.component, dtype=self.dtype, **LOCAL
                )
        assert self._quantized is not None, "nowhere to keep a quantized denoiser"
        every = linears(self._blueprint, within=[""])
        return load_quantized(
            self.family.model,
            self.directory,
            kind=self.memory.quantization,
            dtype=self.dtype,
            device=self.device,
            on_cpu=self.memory.offload,
            targets=list(self.layer_shapes),
            others=[name for name in every if name not in self.layer_shapes],
            root=self._quantized,
        )

    @property
    def _blueprint(self) -> Any:
        """The denoiser without weights, from its configuration alone."""
        with readable(self.folder), torch.device("meta"):
            model = self.family.model
            config = model.load_config(self.folder, subfolder=self.component, local_files_only=True)
            return nn.Module.to(model.from_config(config), self.dtype).requires_grad_(False).eval()

    def on_paper(self, memory: MemoryUse) -> "DiffusersBackbone":
        """The same without weights, on the meta device: it counts what it would compute and keep."""
        paper = copy(self)
        paper.device, paper._memory = torch.device("meta"), memory
        vars(paper)["denoiser"] = denoiser = self._blueprint
        checkpoint_blocks(denoiser, which=memory.checkpointing)
        paper._vae = self._paper_vae()
        return paper

    def _paper_vae(self) -> Any:
        with readable(self.folder), torch.device("meta"):
            config: Any = AutoencoderKL.load_config(self.folder, subfolder="vae", local_files_only=True)
            vae: Any = AutoencoderKL.from_config(config)
            return nn.Module.to(vae, self.dtype)

    @cached_property
    def layer_shapes(self) -> dict[str, LayerShape]:
        """The widths of the target layers; from the configuration alone, no weights are read."""
        layers = self.family.targets(self._blueprint)
        return {name: LayerShape(layer.in_features, layer.out_features) for name, layer in layers.items()}

    def target_layers(self) -> dict[str, nn.Linear]:
        """The Linear layers that carry adapters by dotted name, in module order."""
        return self.family.targets(self.denoiser)

    @torch.no_grad()
    def encode_image(self, pixels_B3HW: Tensor) -> Tensor:
        """Pixels in [-1, 1] to shifted and scaled latents [B, C, H/f, W/f], float32 (the posterior's mode)."""
        vae = self._autoencoder()
        upcast = vae.dtype == torch.float16 and bool(vae.config.force_upcast)  # SDXL's overflows in float16
        if upcast:
            vae.float()
        with explained(key="resolutions, trainer.device"):
            mode_BCHW = vae.encode(pixels_B3HW.to(self.device, vae.dtype)).latent_dist.mode()
        if upcast:
            vae.half()
        if vae.config.shift_factor is not None:
            mode_BCHW = mode_BCHW - vae.config.shift_factor
        return (mode_BCHW * vae.config.scaling_factor).float()

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> TextEmbedding:
        """Embed captions exactly as the pipeline embeds prompts."""
        with explained(key=_MEMORY):
            return self.family.embed(self._text_pipeline(), list(captions), max_text_tokens=self.max_text_tokens)

    def predict(self, x_t_BCHW: Tensor, *, t_B: Tensor, text: TextEmbedding, guidance: float) -> Tensor:
        """The objective's target at time t in [0, 1], 1 = noise; [B, C, H, W] in the denoiser's dtype."""
        cast = TextEmbedding(text.tokens_BLD.to(self.device, self.dtype), text.pooled_BP.to(self.device, self.dtype))
        return self.family.predict(
            self.denoiser,
            x_t_BCHW.to(self.device, self.dtype),
            t_B=t_B.to(self.device),
            text=cast,
            guidance=guidance,
            objective=self.objective,
            vae_factor=self.directory.vae_factor,
        )

    def drawing(self, text: TextEmbedding, *, empty: TextEmbedding | None, guidance: float) -> Drawing:
        """How the stock pipeline draws embedded prompts."""
        return self.family.drawing(text, empty=empty, guidance=guidance)

    def release_encoders(self) -> None:
        """Drop autoencoder and text encoders; what needs them afterwards reads them again."""
        self._vae = self._text = None

    def pipeline(self, *, text: bool = True) -> Any:
        """The stock pipeline around this very denoiser.

        Args:
            text: with the text encoders; without them, prompts have to come embedded.
        """
        denoiser, vae = self.denoiser, self._autoencoder()
        encoders = self._text_pipeline() if text else None
        pipeline = self.family.pipeline(
            **{self.component: denoiser},
            vae=vae,
            scheduler=self._scheduler(),
            **{name: getattr(encoders, name, None) for name in self._text_parts()},
            **self._options(),
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _text_parts(self) -> list[str]:
        return [name for name in self.directory.index if name.startswith(("text_encoder", "tokenizer"))]

    def _options(self) -> dict[str, Any]:
        """The pipeline's own settings, as its model_index.json keeps them."""
        own = {name: value for name, value in self.directory.index.items() if isinstance(value, bool)}
        return own | dict(self.family.unused)

    def _scheduler(self) -> Any:
        with readable(self.folder):
            kind = getattr(diffusers, self.directory.index["scheduler"][1])
            return kind.from_pretrained(self.folder, subfolder="scheduler", local_files_only=True)

    def _autoencoder(self) -> AutoencoderKL:
        if self._vae is None:
            with readable(self.folder):
                vae = AutoencoderKL.from_pretrained(self.folder, subfolder="vae", dtype=self.dtype, **LOCAL)
            nn.Module.to(vae.requires_grad_(False).eval(), self.device)
            self._vae = vae
        return self._vae

    def _text_pipeline(self) -> Any:
        if self._text is None:
            left_out: dict[str, Any] = {self.component: None, "vae": None, **self.family.unused}
            with readable(self.folder):
                pipeline = self.family.pipeline.from_pretrained(self.folder, dtype=self.dtype, **left_out, **LOCAL)
            pipeline.set_progress_bar_config(disable=True)
            for name in self.directory.text_encoders:
                getattr(pipeline, name).requires_grad_(False).eval().to(self.device)
            self._text = pipeline
        return self._text


def linears(denoiser: nn.Module, *, within: Sequence[str]) -> dict[str, nn.Linear]:
    """Every Linear whose dotted name starts with one of `within`."""
    return {
        name: module
        for name, module in denoiser.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(tuple(within))
    }


def with_empty_prompt(text: TextEmbedding, empty: TextEmbedding | None, *, guidance: float, pooled: bool) -> Drawing:
    """Classifier-free guidance above 1: every image is seen twice, without and with its prompt.

    Args:
        empty: the embedding of "", a single row; None: it is all zeros.
        pooled: whether the pipeline takes pooled embeddings too.
    """
    arguments: dict[str, Any] = {"prompt_embeds": text.tokens_BLD, "guidance_scale": guidance}
    if pooled:
        arguments["pooled_prompt_embeds"] = text.pooled_BP
    if guidance <= 1:
        return Drawing(arguments, copies=1)
    if empty is None:
        against = TextEmbedding(torch.zeros_like(text.tokens_BLD), torch.zeros_like(text.pooled_BP))
    else:
        against = empty.rows(torch.zeros(len(text.tokens_BLD), dtype=torch.long, device=empty.tokens_BLD.device))
    arguments["negative_prompt_embeds"] = against.tokens_BLD
    if pooled:
        arguments["negative_pooled_prompt_embeds"] = against.pooled_BP
    return Drawing(arguments, copies=2)
