"""One adapted Linear layer: h = W0 x + Up Mid MetaDown x (eq. 1), each sample of the batch with its own Mid and Up.

Two ways to the same numbers. `FrozenLinearPlusLora` is the fast one for a plain frozen Linear: the base layer's own
kernel runs first (so a fresh adapter changes no bit of it), the low-rank product is added onto its output in place,
and in backward the base layer's input gradient is accumulated onto the low-rank one. Everywhere else (autocast,
torch.compile, few tokens) `adapter_update` is added to what the base layer returns.

A quantized layer keeps its small weight between the passes: each pass makes the numbers anew and drops them.

Shape legend: B samples of the route, L tokens of each, T tokens of all, I in, O out, R r1, S r2; X is R for a Mid and
I for a plain Down.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from metalora.core.bits import dense, is_quantized, kept, numbers_of
from metalora.core.lora import adapter_update, collapse, merges


@dataclass
class LayerSlot:
    """What one layer reads in a forward: refilled by every `AdapterBank.set_route`, empty when there is no route.

    Attributes:
        meta_down: [R, I], shared by the batch; None for plain LoRA.
        first: every sample's Mid [S, R] (or Down [S, I]), flat: [B, S * X].
        up: every sample's Up, transposed [S, O] (both passes then run along memory), flat: [B, S * O].
    """

    rank: int
    in_features: int
    out_features: int
    meta_down: Tensor | None = None
    first: Tensor | None = None
    up: Tensor | None = None


def adapted_linear(layer: nn.Linear, x: Tensor, *, slot: LayerSlot) -> Tensor:
    """The layer's own output plus the routed update.

    Args:
        layer: any Linear; its class's forward is the base.
        x: [B, I], [B, L, I] or with more token dimensions. A route of one sample serves a batch of any size.
    """
    if slot.first is None or slot.up is None:
        return _base(layer, x)
    meta_down_RI, samples = slot.meta_down, slot.first.shape[0]
    assert samples in (1, x.shape[0]), f"a route of {samples} samples met a batch of {x.shape[0]}"
    first_BSX = slot.first.view(samples, slot.rank, -1)
    up_BSO = slot.up.view(samples, slot.rank, slot.out_features)
    tokens = x.numel() // (samples * slot.in_features)
    if merges(tokens=tokens, rank=slot.rank) and _is_ours(layer, x):
        down_BSI = first_BSX if meta_down_RI is None else collapse(meta_down_RI, first_BSX)
        return FrozenLinearPlusLora.apply(x, layer.weight, layer.bias, down_BSI.to(x.dtype), up_BSO.to(x.dtype))
    y = _base(layer, x)
    x_BLI = x.to(y.dtype).reshape(samples, -1, slot.in_features)
    return y + adapter_update(x_BLI, meta_down_RI=meta_down_RI, first_BSX=first_BSX, up_BSO=up_BSO).view(y.shape)


def _base(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer without an adapter."""
    if is_quantized(layer.weight) and _is_ours(layer, x):
        return FrozenLinear.apply(x, layer.weight, layer.bias)
    return type(layer).forward(layer, x)


def _is_ours(layer: nn.Linear, x: Tensor) -> bool:
    """Whether the hand-written forward and backward are the layer's: frozen, no casts, no compiler."""
    if torch.compiler.is_compiling() or layer.weight.requires_grad:
        return False
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        return False
    if is_quantized(layer.weight):
        return x.is_floating_point() and (layer.bias is None or layer.bias.dtype == x.dtype)
    return type(layer) is nn.Linear and layer.weight.dtype == x.dtype


class FrozenLinear(torch.autograd.Function):
    """W0 x + b with frozen, quantized W0: the numbers of W0 live for one product at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        parts, ctx.bare = kept(weight_OI)
        ctx.save_for_backward(*parts)
        return torch.nn.functional.linear(x, dense(weight_OI, dtype=x.dtype), bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        return grad_y @ numbers_of(ctx.saved_tensors, ctx.bare, dtype=grad_y.dtype), None, None


class FrozenLinearPlusLora(torch.autograd.Function):
    """W0 x + b + Up Down x with frozen W0 and b; of full size only x is saved, and its gradient is written once."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, down_BSI: Tensor, up_BSO: Tensor
    ) -> Tensor:
        y = torch.nn.functional.linear(x, dense(weight_OI, dtype=x.dtype), bias_O)
        samples, rank, out_features = up_BSO.shape
        x_BLI = x.reshape(samples, -1, x.shape[-1])
        z_BLS = torch.bmm(x_BLI, down_BSI.mT)
        y_BLO = y.view(samples, -1, out_features)
        if rank == 1:
            y_BLO.addcmul_(z_BLS, up_BSO)
        else:
            y_BLO.baddbmm_(z_BLS, up_BSO)
        parts, ctx.bare = kept(weight_OI)
        ctx.save_for_backward(x_BLI, z_BLS, down_BSI, up_BSO, *parts)
        ctx.x_shape = x.shape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x_BLI, z_BLS, down_BSI, up_BSO, *parts = ctx.saved_tensors
        samples, rank, out_features = up_BSO.shape
        grad_TO = grad_y.reshape(-1, out_features)
        grad_BLO = grad_TO.view(samples, -1, out_features)
        grad_z_BLS = torch.bmm(grad_BLO, up_BSO.mT)
        grad_up_BSO = torch.bmm(z_BLS.mT, grad_BLO)
        grad_down_BSI = torch.bmm(grad_z_BLS.mT, x_BLI)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x_BLI = grad_z_BLS * down_BSI if rank == 1 else torch.bmm(grad_z_BLS, down_BSI)
            grad_x_TI = grad_x_BLI.view(-1, x_BLI.shape[-1])
            grad_x = grad_x_TI.addmm_(grad_TO, numbers_of(tuple(parts), ctx.bare, dtype=grad_TO.dtype)).view(
                ctx.x_shape
            )
        return grad_x, None, None, grad_down_BSI, grad_up_BSO
