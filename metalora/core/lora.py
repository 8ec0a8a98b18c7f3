"""The three-layer update of Meta-LoRA: h = W0 x + Up Mid MetaDown x (eq. 1), its start and its collapse.

A plain LoRA is the two-layer case, h = W0 x + Up Down x. The adapters' scale is 1 (alpha = rank).

Shape legend: B batch, L tokens, I in, O out, R r1, S r2 (the rank of the exported LoRA).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metalora.core.noise import generator


@dataclass(frozen=True)
class LayerShape:
    """The two widths of a Linear layer."""

    in_features: int
    out_features: int


def kaiming_uniform(shape: tuple[int, int], *, key: tuple[str | int, ...]) -> Tensor:
    """Kaiming-uniform with a = sqrt 5, i.e. uniform in +-1/sqrt(fan_in), drawn from the key alone.

    Args:
        shape: (out, in) of the matrix; fan_in is `in`.
        key: e.g. (seed, identity, layer, visit): a cohort starts bit for bit where single runs start.

    Returns:
        float32 on the CPU.
    """
    bound = 1 / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator("init", *key))


def collapse(meta_down_RI: Tensor, mid_SR: Tensor) -> Tensor:
    """Mid MetaDown: the `lora_A` [..., S, I] of the plain LoRA that a Meta-LoRA equals; its `lora_B` is Up.

    Args:
        mid_SR: [S, R], or [B, S, R] for a batch of adapters.
    """
    return mid_SR @ meta_down_RI


def merges(*, tokens: int, rank: int) -> bool:
    """Which association of Up Mid MetaDown x is cheaper for one sample.

    Mid MetaDown first costs S R I once per sample and then a rank-S LoRA; MetaDown x first costs L R I. At equal
    cost (modulation layers at rank 1) the latter reads MetaDown once less in backward.
    """
    return rank < tokens


def adapter_update(x_BLI: Tensor, *, meta_down_RI: Tensor | None, first_BSX: Tensor, up_BSO: Tensor) -> Tensor:
    """Up Mid MetaDown x (or Up Down x) as plain differentiable operations: [B, L, O] in the dtype of x.

    Args:
        meta_down_RI: shared by the batch; None for a plain LoRA.
        first_BSX: Mid [B, S, R], or Down [B, S, I] of a plain LoRA; each sample its own.
        up_BSO: Up transposed, each sample its own.
    """
    dtype = x_BLI.dtype
    hidden_BLX = x_BLI
    if meta_down_RI is not None:
        if merges(tokens=x_BLI.shape[1], rank=first_BSX.shape[1]):
            first_BSX = collapse(meta_down_RI, first_BSX)
        else:
            hidden_BLX = x_BLI @ meta_down_RI.to(dtype).mT
    update_BLO = hidden_BLX @ first_BSX.to(dtype).mT @ up_BSO.to(dtype)
    return update_BLO.to(dtype)
