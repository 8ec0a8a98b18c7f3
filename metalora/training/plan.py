"""What a run's memory will peak at, told before it starts: the very step of training, taken on the meta device.

Shape legend: B batch, C latent channels, H W latent height and width, L text tokens, D text width, P pooled width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metalora.adapters.bank import AdapterBank, row_sizes
from metalora.adapters.inject import inject
from metalora.backbones.sizes import dense_bytes, weight_bytes
from metalora.core.budget import MemoryPlan
from metalora.core.contracts import Backbone, Batch, MemoryUse, Sample, TextEmbedding
from metalora.core.footprint import LiveBytes
from metalora.training.step import diffusion_loss


@dataclass(frozen=True)
class Work:
    """What is trained at once: the largest batch of a run, and the adapters around it."""

    batch: int
    identities: int
    """Rows of the bank."""
    rank: int
    meta_rank: int | None
    train_meta_down: bool
    latents_CHW: tuple[int, ...]
    text: TextEmbedding
    """A single row."""


def plan_step(backbone: Backbone, work: Work, *, memory: MemoryUse) -> MemoryPlan:
    """Take one training step on the meta device and count.

    Args:
        backbone: only its configuration is read.
        memory: how memory is saved.
    """
    paper, layers = backbone.on_paper(memory), backbone.layer_shapes
    with torch.device("meta"):
        present = [str(number) for number in range(min(work.batch, work.identities))]
        bank = AdapterBank(layers, identities=present, rank=work.rank, meta_rank=work.meta_rank, seed=0)
    bank.train_meta_down = work.train_meta_down
    inject(paper.denoiser, bank)
    batch = _batch(work, dtype=backbone.dtype)
    with LiveBytes() as live:
        diffusion_loss(paper, bank, batch, guidance=1.0).total.backward()  # what follows needs less
    row = sum(row_sizes(layers, rank=work.rank, meta_rank=work.meta_rank))
    meta_down = sum(parameter.numel() for parameter in bank.meta_down.values())
    rows, four = work.identities * row, torch.float32.itemsize
    return MemoryPlan(
        memory=memory,
        weights=weight_bytes(paper),
        adapter=four * (rows + meta_down),
        moments=2 * four * (rows + (meta_down if work.train_meta_down else 0)),
        activations=live.peak + dense_bytes(paper),
    )


def _batch(work: Work, *, dtype: torch.dtype) -> Batch:
    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    rows = [number % work.identities for number in range(work.batch)]
    tokens_1LD, pooled_1P = work.text.tokens_BLD, work.text.pooled_BP
    return Batch(
        latents_BCHW=empty(work.batch, *work.latents_CHW),
        noise_BCHW=empty(work.batch, *work.latents_CHW),
        t_B=empty(work.batch),
        text=TextEmbedding(
            empty(work.batch, *tokens_1LD.shape[1:], dtype=dtype), empty(work.batch, *pooled_1P.shape[1:], dtype=dtype)
        ),
        rows_B=torch.tensor(rows),
        samples=tuple(
            Sample(str(row), row=row, image=0, flip=False, iteration=0, occurrence=rows[:number].count(row))
            for number, row in enumerate(rows)
        ),
        iteration=0,
    )


def largest(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape [C, H, W] with the most numbers."""
    return max(shapes, key=lambda shape: (torch.Size(shape).numel(), shape))
