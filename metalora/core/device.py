"""Sending numbers to a device, and what its failures mean to a person."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from metalora.core.errors import UserError


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on another device; nobody waits, neither for the copy nor for what the device is doing."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@contextlib.contextmanager
def explained(*, key: str, less: str = "", planned: str = "") -> Iterator[None]:
    """Turn a full or lost GPU into one line; what has been saved is still there. Smaller values make another run.

    Args:
        key: the configuration keys that need less memory.
        less: what would need less memory, e.g. the next smaller preset.
        planned: what the run was expected to need.

    Raises:
        UserError: out of memory, or the device failed.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        said = str(error).split(". ")
        raise UserError(
            "the GPU's memory is full; what was saved is kept",
            expected=f"{less or 'smaller values, a smaller base'}, or a larger GPU than one of {_capacity(said)}",
            got=(said[1] if len(said) > 1 else said[0]) + (f"; planned was a peak of {planned}" if planned else ""),
            key=key,
        ) from error
    except torch.AcceleratorError as error:
        raise UserError(
            "the GPU failed; what was saved is kept, and the same command continues once it is back",
            expected="a working GPU",
            got=next((line for line in str(error).splitlines() if line.strip()), type(error).__name__),
            key="trainer.device",
        ) from error


def _capacity(said: list[str]) -> str:
    """The GPU's memory in torch's words, e.g. "23.6 GiB", or what of it a preset allows."""
    before_allowed = " ".join(said).partition(" allowed")
    if before_allowed[1]:
        return " ".join(before_allowed[0].split()[-2:]) + " (memory.budget_gb)"
    words = " ".join(said).partition("total capacity of ")[2].split()
    return " ".join(words[:2]) if len(words) > 1 else "this size"
