"""Random numbers that depend on what they are for and on nothing else.

Noise and timestep of a training sample are keyed by (seed, identity, iteration, occurrence): not by batch mates,
resume or worker count. So a cohort draws what single runs draw, and a resumed run what the uncut run drew.
"""

import hashlib
import json
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def generator(*key: str | int | float) -> torch.Generator:
    """A CPU generator seeded from the sha256 of the key's parts, the same on every machine.

    Equal keys give equal streams on one kind of CPU; between kinds, normal numbers may differ in their last bits
    (torch's own arithmetic: up to 1.2e-6).

    Args:
        key: what the numbers are for, e.g. `("noise", seed, identity, iteration, occurrence)`.
    """
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def noise(shape: Sequence[int], *, seed: int, identity: str, iteration: int, occurrence: int) -> Tensor:
    """Standard normal noise of one training sample.

    Args:
        shape: usually [C, H, W] of the latents.
        occurrence: how many samples of this identity stand before this one in the batch.

    Returns:
        float32 on the CPU.
    """
    return torch.randn(tuple(shape), generator=generator("noise", seed, identity, iteration, occurrence))


def timestep(
    *,
    seed: int,
    identity: str,
    iteration: int,
    occurrence: int,
    time_of: Callable[[Tensor], Tensor] = torch.sigmoid,
) -> Tensor:
    """Time of one training sample.

    Args:
        time_of: makes a time of a standard normal number; logit-normal (Esser et al. 2024, section 3.1) by default.

    Returns:
        float32 scalar on the CPU, t in [0, 1] with 1 = noise.
    """
    return time_of(torch.randn((), generator=generator("timestep", seed, identity, iteration, occurrence)))
