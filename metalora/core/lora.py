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


@dataclass(frozen=True)
class Truncated:
    """The best LoRA of a rank for another one's product."""

    down_SI: Tensor
    up_OS: Tensor
    kept: float
    """Which share of the product's squared Frobenius norm is left, in [0, 1]; 1 where there is no product."""


def truncate(down_RI: Tensor, up_OR: Tensor, *, rank: int) -> Truncated:
    """Up Down at another rank by its singular value decomposition (Eckart and Young): the nearest there is.

    The product [O, I] is never formed: with Up = Q R and Down^T = P T, the singular values are those of R T^T. They go
    in equal parts into both factors. A rank above the old one gains zeros.

    Returns:
        factors in the dtype of what was given, of exactly `rank`.
    """
    q_OR, r_RR = torch.linalg.qr(up_OR.double())
    p_IR, t_RR = torch.linalg.qr(down_RI.double().mT)
    u_RS, s_S, v_SR = torch.linalg.svd(r_RR @ t_RR.mT, full_matrices=False)
    kept = min(rank, len(s_S))
    half_S = s_S[:kept].sqrt()
    up_OS = up_OR.new_zeros(len(up_OR), rank)
    down_SI = down_RI.new_zeros(rank, down_RI.shape[1])
    up_OS[:, :kept] = (q_OR @ u_RS[:, :kept] * half_S).to(up_OR.dtype)
    down_SI[:kept] = (half_S.unsqueeze(1) * (v_SR[:kept] @ p_IR.mT)).to(down_RI.dtype)
    total = float(s_S.square().sum())
    return Truncated(down_SI, up_OS, float(s_S[:kept].square().sum()) / total if total else 1.0)
