"""All trainable parameters as one flat vector, and two update rules on it: Muon for matrices, AdamW for the rest.

Flat vectors in shared memory let several processes train one model: each adds its gradient, each updates its share.
Legend: P all parameters, M matrices of one shape, R rows, C columns.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metalora.miniworld.build.loop import fast_dtype

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalized(x_MRC: Tensor, *, steps: int = 5) -> Tensor:
    """Nearly the closest semi-orthogonal matrix to each given one, by Newton-Schulz iterations (Jordan et al. 2024)."""
    a, b, c = _COEFFICIENTS
    tall = x_MRC.shape[-2] > x_MRC.shape[-1]
    x = (x_MRC.mT if tall else x_MRC).to(fast_dtype())
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(x_MRC.dtype)


@dataclass(frozen=True)
class Slot:
    """One parameter's place in the flat vector."""

    name: str
    start: int
    shape: tuple[int, ...]
    muon: bool

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.shape)

    def view(self, flat_P: Tensor) -> Tensor:
        """This parameter's part of a flat vector."""
        return flat_P[self.start : self.stop].view(self.shape)


def is_muon(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a matrix of attention or feed-forward inside a transformer block (modulation is not)."""
    return "transformer_blocks." in name and parameter.ndim == 2 and ".norm" not in name


def lay_out(modules: dict[str, nn.Module]) -> list[Slot]:
    """Places of all parameters of the named modules; Muon's matrices first, sorted by shape."""
    named = [(f"{key}.{name}", p) for key, module in modules.items() for name, p in module.named_parameters()]
    named.sort(key=lambda pair: (not is_muon(*pair), tuple(pair[1].shape) if is_muon(*pair) else (), pair[0]))
    slots, start = [], 0
    for name, parameter in named:
        slots.append(Slot(name, start, tuple(parameter.shape), is_muon(name, parameter)))
        start = slots[-1].stop
    return slots


def gather(modules: dict[str, nn.Module], slots: list[Slot], out_P: Tensor, *, gradients: bool) -> None:
    """Copy parameters, or their gradients, into a flat vector."""
    named = {f"{key}.{name}": p for key, module in modules.items() for name, p in module.named_parameters()}
    for slot in slots:
        source = named[slot.name].grad if gradients else named[slot.name].detach()
        assert source is not None, slot.name
        slot.view(out_P).copy_(source)


def scatter(modules: dict[str, nn.Module], slots: list[Slot], flat_P: Tensor) -> None:
    """Copy a flat vector into the parameters, whatever their dtype."""
    named = {f"{key}.{name}": p for key, module in modules.items() for name, p in module.named_parameters()}
    with torch.no_grad():
        for slot in slots:
            named[slot.name].copy_(slot.view(flat_P))


def share(slots: list[Slot], *, rank: int, world: int) -> tuple[list[Slot], list[Slot]]:
    """The Muon slots and the other slots that process `rank` of `world` updates; the latter are contiguous."""
    matrices = [slot for slot in slots if slot.muon]
    rest = [slot for slot in slots if not slot.muon]
    total = sum(slot.stop - slot.start for slot in rest)
    mine, seen = [], 0
    for slot in rest:
        if seen * world // max(1, total) == rank:
            mine.append(slot)
        seen += slot.stop - slot.start
    by_shape: dict[tuple[int, ...], int] = {}
    ours = []
    for slot in matrices:  # every shape is dealt out evenly
        index = by_shape.get(slot.shape, 0)
        by_shape[slot.shape] = index + 1
        if index % world == rank:
            ours.append(slot)
    return ours, mine


@dataclass(frozen=True)
class Moments:
    """State of both rules: first moments (Muon's momentum too) and second moments, flat [P]."""

    first: Tensor
    second: Tensor


def muon_step(
    slots: list[Slot], *, parameters_P: Tensor, gradients_P: Tensor, moments: Moments, rate: float, decay: float
) -> None:
    """Momentum 0.95 with Nesterov, orthogonalised; updates scaled to AdamW's usual size, 0.2 sqrt(longer side)."""
    shapes = sorted({slot.shape for slot in slots})
    for shape in shapes:
        group = [slot for slot in slots if slot.shape == shape]
        gradient = torch.stack([slot.view(gradients_P) for slot in group])
        momentum = torch.stack([slot.view(moments.first) for slot in group]).lerp_(gradient, 0.05)
        update = orthogonalized(gradient.lerp(momentum, 0.95)) * (0.2 * math.sqrt(max(shape)))
        for index, slot in enumerate(group):
            slot.view(moments.first).copy_(momentum[index])
            slot.view(parameters_P).mul_(1 - rate * decay).sub_(update[index], alpha=rate)


def adamw_step(
    slots: list[Slot],
    *,
    step: int,
    parameters_P: Tensor,
    gradients_P: Tensor,
    moments: Moments,
    rate: float,
    decay: float,
) -> None:
    """AdamW with betas (0.9, 0.98) on a contiguous range of slots; `step` counts from 0."""
    part = slice(slots[0].start, slots[-1].stop)
    gradient, first, second = gradients_P[part], moments.first[part], moments.second[part]
    first.lerp_(gradient, 0.1)
    second.mul_(0.98).addcmul_(gradient, gradient, value=0.02)
    root = (second / (1 - 0.98 ** (step + 1))).sqrt_().add_(1e-8)
    parameters_P[part].mul_(1 - rate * decay).addcdiv_(first / (1 - 0.9 ** (step + 1)), root, value=-rate)
