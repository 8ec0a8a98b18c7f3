"""What the floors agree on: protocols for what can be swapped, frozen dataclasses for what passes between floors.

Shape legend: B batch, C latent channels, H W latent height and width, L text tokens, D text width, P pooled width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from metalora.core.device import sent
from metalora.core.lora import LayerShape

METHODS = ("meta_lora", "lora_aug", "lora")
"""meta_lora: frozen Meta-Down, trained Mid and Up. lora_aug: plain LoRA on the crops. lora: plain LoRA on the photo."""


@dataclass(frozen=True)
class TextEmbedding:
    """A batch of embedded prompts: tokens_BLD for the denoiser's text stream, pooled_BP for its modulation."""

    tokens_BLD: Tensor
    pooled_BP: Tensor

    def rows(self, index_B: Tensor) -> "TextEmbedding":
        """Pick rows, e.g. to give every sample of a batch the caption of its identity."""
        return TextEmbedding(self.tokens_BLD[index_B], self.pooled_BP[index_B])

    def to(self, device: torch.device) -> "TextEmbedding":
        """The same on another device, without waiting for it."""
        return TextEmbedding(sent(self.tokens_BLD, device), sent(self.pooled_BP, device))


class Objective(Protocol):
    """What a denoiser learned to predict, and at which times: rectified flow, or discrete diffusion."""

    def time_of(self, normal: Tensor) -> Tensor:
        """A training sample's time in [0, 1], 1 = noise, from a standard normal number."""
        ...

    def noisy(self, latents_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """What the denoiser sees at time t."""
        ...

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """What it is to predict."""
        ...


@dataclass(frozen=True)
class Drawing:
    """How a backbone's stock pipeline is asked for a batch of images."""

    arguments: dict[str, Any]
    """Embedded prompts and guidance, for the pipeline's call."""
    copies: int
    """How many times the denoiser sees every image in one step: 2 under classifier-free guidance."""


CHECKPOINTING = ("none", "some", "all")
"""How many blocks forget their activations and compute them again in backward: none, every other one, all."""


@dataclass(frozen=True)
class MemoryUse:
    """How a denoiser's memory is saved; of these, only quantization changes a number."""

    quantization: str | None = None
    """Bits of the frozen target layers: float8, int8 or nf4; None: the backbone's dtype."""
    checkpointing: str = "none"
    """Blocks whose activations are computed again in backward: none, some (every other one) or all."""
    offload: bool = False
    """Whether the blocks' weights wait on the CPU and come to the device one at a time."""

    def __str__(self) -> str:
        parts = [
            f"{self.quantization} weights" if self.quantization else "",
            {"none": "", "some": "every other block checkpointed", "all": "all blocks checkpointed"}[
                self.checkpointing
            ],
            "weights offloaded" if self.offload else "",
        ]
        return ", ".join(part for part in parts if part) or "nothing saved"


@runtime_checkable
class Backbone(Protocol):
    """A frozen text-to-image model as training sees it. `flux_dev` and the mini world's are the same class."""

    name: str
    """The config group's word: mini, flux_dev."""
    folder: Path
    """The pipeline's directory."""
    fingerprint: str
    """sha256 over the transformer's config and weights; a prior only fits the backbone it was made with."""
    encoder_fingerprint: str
    """sha256 over the autoencoder's config and weights; latents belong to it."""
    text_fingerprint: str
    """sha256 over the text encoders' configs and weights; text embeddings belong to it."""
    component: str
    """What diffusers calls the denoiser: transformer or unet; its folder, and the prefix of a LoRA's layers."""
    denoiser: nn.Module
    """Frozen, eval mode; adapters are injected into its Linear layers."""
    objective: Objective
    """What the denoiser learned."""
    needs_empty_prompt: bool
    """Whether drawing needs the embedding of "" as well (classifier-free guidance)."""
    device: torch.device
    """Where the denoiser computes."""
    dtype: torch.dtype
    """Of the frozen weights, or of the products with quantized ones."""
    memory: MemoryUse
    """How the denoiser's memory is saved; to be settled before the denoiser is asked for."""
    pixel_multiple: int
    """Image sides must be multiples of this (VAE factor x patch size)."""

    def on_paper(self, memory: MemoryUse) -> "Backbone":
        """The same without weights, on the meta device: it counts what it would compute and keep."""
        ...

    def encode_image(self, pixels_B3HW: Tensor) -> Tensor:
        """Pixels in [-1, 1] to scaled latents [B, C, H/f, W/f] (mean of the posterior: deterministic)."""
        ...

    def encode_text(self, captions: Sequence[str]) -> TextEmbedding:
        """Embed captions."""
        ...

    def predict(self, x_t_BCHW: Tensor, *, t_B: Tensor, text: TextEmbedding, guidance: float) -> Tensor:
        """The objective's target as the denoiser sees it at time t in [0, 1], 1 = noise; same shape as x_t."""
        ...

    layer_shapes: dict[str, LayerShape]
    """Widths of the target layers by dotted name, in module order; known without reading weights."""

    def target_layers(self) -> dict[str, nn.Linear]:
        """The Linear layers that carry adapters by dotted name, in module order."""
        ...

    def release_encoders(self) -> None:
        """Drop VAE and text encoders from memory (they never share memory with a big transformer)."""
        ...

    def pipeline(self, *, text: bool = True) -> Any:
        """The stock diffusers pipeline around the very same transformer object, for generation.

        Args:
            text: with the text encoders; without them, prompts have to come embedded.
        """
        ...

    def drawing(self, text: TextEmbedding, *, empty: TextEmbedding | None, guidance: float) -> Drawing:
        """How that pipeline draws embedded prompts.

        Args:
            empty: the embedding of "", a single row; needed when `needs_empty_prompt`.
        """
        ...


@dataclass(frozen=True)
class Box:
    """A face box in pixels: x0 y0 (inclusive) to x1 y1 (exclusive)."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def long_side(self) -> float:
        """f_long of App. D."""
        return max(self.x1 - self.x0, self.y1 - self.y0)


Point = tuple[float, float]
FivePoints = tuple[Point, Point, Point, Point, Point]
"""(x, y) in pixels: the eye on the picture's left, the other eye, the nose's tip, the mouth's left and right corner."""


@dataclass(frozen=True)
class DetectedFace:
    """One face found in a picture, with the detector's probability; `points` where the detector finds them."""

    box: Box
    probability: float
    points: FivePoints | None = None


class FaceDetector(Protocol):
    """Finds faces; `faces` of each image sorted by probability x area, best first."""

    def detect(self, images: Sequence[np.ndarray]) -> list[list[DetectedFace]]:
        """uint8 RGB images [H, W, 3] of any size to found faces per image."""
        ...


class FaceEmbedder(Protocol):
    """Embeds face crops; unit vectors."""

    def embed(self, images: Sequence[np.ndarray], boxes: Sequence[Box]) -> Tensor:
        """uint8 RGB images and the face box in each to unit embeddings [B, D]."""
        ...


@runtime_checkable
class AlignedFaceEmbedder(Protocol):
    """Embeds faces that are first laid onto a template by their five points; unit vectors."""

    def embed_faces(self, images: Sequence[np.ndarray], faces: Sequence[DetectedFace]) -> Tensor:
        """uint8 RGB images [H, W, 3] of any sizes and the face in each to unit embeddings [B, D]."""
        ...


class ClipScorer(Protocol):
    """Embeds whole images and prompts into one space; unit vectors."""

    def embed_images(self, images: Sequence[np.ndarray]) -> Tensor:
        """uint8 RGB images to unit embeddings [B, D]."""
        ...

    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        """Prompts to unit embeddings [B, D]."""
        ...


@dataclass(frozen=True)
class TrainingImage:
    """One cached training image: its latents for both flips and where they came from.

    latents_2CHW[0] is the image as it is, [1] its mirror image. `shape` is (height, width) in pixels.
    """

    latents_2CHW: Tensor
    shape: tuple[int, int]
    source: str


@dataclass(frozen=True)
class TrainingPerson:
    """One identity ready for training. `images` may have several shapes; a cohort needs the same set of shapes."""

    identity: str
    caption: str
    images: tuple[TrainingImage, ...]


@dataclass(frozen=True)
class Sample:
    """One sample of a batch: which identity's which image, flipped or not, and the noise key's occurrence."""

    identity: str
    row: int
    """Row of the identity bank."""
    image: int
    """Index into TrainingPerson.images."""
    flip: bool
    iteration: int
    occurrence: int
    """How many samples of this identity stand before this one in the batch."""


@dataclass(frozen=True)
class Batch:
    """What a training step consumes. All samples have one shape; every random number is already drawn."""

    latents_BCHW: Tensor
    noise_BCHW: Tensor
    t_B: Tensor
    text: TextEmbedding
    rows_B: Tensor
    """Bank row per sample, int64, on the CPU wherever the rest is."""
    samples: tuple[Sample, ...]
    """Perhaps none, where several processes share an iteration."""
    iteration: int
    people: int | None = None
    """Identities of the iteration in all processes; None: those of `samples`."""


@dataclass(frozen=True, kw_only=True)
class GeneratedImage:
    """One line of manifest.jsonl in a folder of generated images: the one place that says what the format is.

    A field may be added with a default, none may change or go: finished folders stay readable. What has a default may
    be left out by other programs; fields that are not known here are passed over.
    """

    file: str
    """Relative to the manifest's folder."""
    method: str
    """"base" is the untouched base model; its `identity` is "base" too, and its `class_noun` must be given."""
    identity: str
    class_noun: str = ""
    """man or woman; empty: as the benchmark says of this identity."""
    prompt_id: str
    prompt: str = ""
    """Empty: the benchmark's own words."""
    seed: int
    rank: int = 0
    iterations: int = 0
    lora: str = ""
    """Path of the LoRA file; empty where there is none: the untouched base (method "base"), a method without LoRAs."""
    lora_sha256: str = ""
    base_model: str
    """Any name that tells base models apart; CLIP-I compares with the base's image of the same one."""
    steps: int
    guidance: float
    size: tuple[int, int]
    """Height and width of the file in pixels."""
    strength: float = 1.0
    """What the LoRA's update was multiplied with."""
    start_sha256: str = ""
    """Of the picture (and mask) that the image was drawn over; empty where there is none."""
    denoise: float = 1.0
    """Share of the noise that was added to that picture."""
    weights_sha256: str = ""
    """Of the weights that make the method, where these are no LoRA file."""
    reference: str = ""
    """The one photo of the person that the method was given: FOLDER/NAME, or a path."""
    reference_sha256: str = ""
    seconds: float | None = field(default=None, compare=False)
    """That the image took, a batch's time shared out evenly; without training. What it cost is not what it is."""
    peak_memory_mb: int | None = field(default=None, compare=False)
    """Largest memory while it was drawn: of the GPU where there is one, else of the process."""
    benchmark: str = ""
    """NAME@DIGEST of the benchmark it was drawn for (`benchmark_version`)."""


@dataclass(frozen=True)
class LoraFile:
    """A plain LoRA in memory: A [R, I] and B [O, R] per layer name; scale folded in, alpha = rank."""

    down: dict[str, Tensor]
    up: dict[str, Tensor]
    metadata: dict[str, str]
    path: Path | None = None
    component: str = "transformer"
    """The model its layers are of: transformer or unet."""
