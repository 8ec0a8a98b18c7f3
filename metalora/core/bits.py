"""Weights that are kept in fewer bits than their numbers have.

Shape legend: I in, O out.
"""

from copy import copy
from typing import Any

import torch
from torch import Tensor, nn


def is_quantized(weight: Tensor) -> bool:
    """Whether a weight is kept in fewer bits than its numbers have: torchao's tensors, bitsandbytes' parameters."""
    return type(weight) not in (Tensor, nn.Parameter)


def dense(weight: Tensor, *, dtype: torch.dtype) -> Tensor:
    """A frozen weight [O, I] as plain numbers; a plain weight is itself."""
    if not is_quantized(weight):
        return weight
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight.dequantize().to(dtype)
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, state).to(dtype)


def kept(weight: Tensor) -> tuple[tuple[Tensor, ...], Any]:
    """What autograd has to keep of a frozen weight, and what else `numbers_of` needs.

    Only what goes through autograd's own books is dropped when a block is checkpointed.
    """
    state = getattr(weight, "quant_state", None)
    if state is None:
        return (weight,), None
    bare = copy(state)
    bare.absmax = None
    return (weight.data, state.absmax), bare


def numbers_of(parts: tuple[Tensor, ...], bare: Any, *, dtype: torch.dtype) -> Tensor:
    """The plain numbers of what was `kept`."""
    if bare is None:
        return dense(parts[0], dtype=dtype)
    from bitsandbytes.functional import dequantize_4bit

    state = copy(bare)
    state.absmax = parts[1]
    return dequantize_4bit(parts[0], state).to(dtype)
