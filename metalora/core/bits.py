"""Weights that are kept in fewer bits than their numbers have.

Shape legend: I in, O out.
"""

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
