"""One adapted Linear layer: h = W0 x + Up Mid MetaDown x (eq. 1), each sample of the batch with its own Mid and Up.

Two ways to the same numbers. `FrozenLinearPlusLora` is the fast one for a plain frozen Linear: the base layer's own
kernel runs first (so a fresh adapter changes no bit of it), the low-rank product is added onto its output in place,
and in backward the base layer's input gradient is accumulated onto the low-rank one. Everywhere else (autocast,
torch.compile, quantized layers, few tokens) `adapter_update` is added to what the base layer returns.

Shape legend: B samples of the route, L tokens, I in, O out, R r1, S r2; X is R for a Mid and I for a plain Down.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from metalora.core.lora import adapter_update, collapse, merges


@dataclass
class LayerSlot:
    """What one layer reads in a forward: refilled by every `AdapterBank.set_route`, empty when there is no route."""

    rank: int
    in_features: int
    out_features: int
    meta_down_RI: Tensor | None = None
    first_BN: Tensor | None = None
    """Mid [S, R] (or Down [S, I]) of every sample, flat."""
    up_BN: Tensor | None = None
    """Up [O, S] of every sample, flat."""


def adapted_linear(
    x: Tensor, *, slot: LayerSlot, base: Callable[[Tensor], Tensor], weight_OI: Tensor | None, bias_O: Tensor | None
) -> Tensor:
    """The base layer's output plus the routed update.

    Args:
        x: [B, I], [B, L, I] or with more token dimensions. A route of one sample serves a batch of any size.
        base: the untouched layer.
        weight_OI: its weight if it is a plain nn.Linear, else None.
    """
    first_BN, up_BN, meta_down_RI = slot.first_BN, slot.up_BN, slot.meta_down_RI
    if first_BN is None or up_BN is None:
        return base(x)
    samples = first_BN.shape[0]
    assert samples in (1, x.shape[0]), f"a route of {samples} samples met a batch of {x.shape[0]}"
    first_BSX = first_BN.view(samples, slot.rank, -1)
    up_BOS = up_BN.view(samples, slot.out_features, slot.rank)
    tokens = x.numel() // (samples * slot.in_features)
    if weight_OI is not None and _is_plain(x, weight_OI) and merges(tokens=tokens, rank=slot.rank):
        down_BSI = first_BSX if meta_down_RI is None else collapse(meta_down_RI, first_BSX)
        return FrozenLinearPlusLora.apply(x, weight_OI, bias_O, down_BSI.to(x.dtype), up_BOS.to(x.dtype))
    y = base(x)
    x_BLI = x.to(y.dtype).reshape(samples, -1, slot.in_features)
    return y + adapter_update(x_BLI, meta_down_RI=meta_down_RI, first_BSX=first_BSX, up_BOS=up_BOS).view(y.shape)


def _is_plain(x: Tensor, weight_OI: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        return False
    return weight_OI.dtype == x.dtype and not weight_OI.requires_grad


class FrozenLinearPlusLora(torch.autograd.Function):
    """W0 x + b + Up Down x with frozen W0 and b: nothing of size L x O is saved, no gradient of size L x I is copied."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, down_BSI: Tensor, up_BOS: Tensor
    ) -> Tensor:
        y = F.linear(x, weight_OI, bias_O)
        samples, out_features, _ = up_BOS.shape
        x_BLI = x.reshape(samples, -1, x.shape[-1])
        z_BLS = torch.bmm(x_BLI, down_BSI.mT)
        y.view(samples, -1, out_features).baddbmm_(z_BLS, up_BOS.mT)
        ctx.save_for_backward(x_BLI, z_BLS, weight_OI, down_BSI, up_BOS)
        ctx.x_shape = x.shape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x_BLI, z_BLS, weight_OI, down_BSI, up_BOS = ctx.saved_tensors
        samples, out_features, _ = up_BOS.shape
        grad_BLO = grad_y.reshape(samples, -1, out_features)
        grad_z_BLS = torch.bmm(grad_BLO, up_BOS)
        grad_up_BOS = torch.bmm(grad_BLO.mT, z_BLS)
        grad_down_BSI = torch.bmm(grad_z_BLS.mT, x_BLI)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x_TI = torch.bmm(grad_z_BLS, down_BSI).view(-1, x_BLI.shape[-1])
            grad_x = grad_x_TI.addmm_(grad_BLO.reshape(-1, out_features), weight_OI).view(ctx.x_shape)
        return grad_x, None, None, grad_down_BSI, grad_up_BOS
