"""A plan of the memory a run will peak at, and the choice of the fastest way to stay within what there is."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from metalora.core.contracts import CHECKPOINTING, MemoryUse
from metalora.core.errors import UserError

GIB = 1 << 30
RESERVE = GIB
"""What a plan leaves free of a budget: the driver's context, libraries' workspaces, fragments between tensors."""
PRESETS = (80, 48, 24, 16)
"""The memory presets, in GiB."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes at the peak of a step."""

    memory: MemoryUse
    weights: int
    adapter: int
    moments: int
    activations: int
    """What a step makes and keeps until its backward has used it, gradients among it."""
    less: str = ""
    """What would need less memory, in words."""

    @property
    def peak(self) -> int:
        """All together."""
        return self.weights + self.adapter + self.moments + self.activations

    def __str__(self) -> str:
        parts = {"weights": self.weights, "adapters": self.adapter, "moments": self.moments}
        parts["activations and gradients"] = self.activations
        told = ", ".join(f"{name} {gib(size)}" for name, size in parts.items())
        return f"{gib(self.peak)} GiB ({told}; {self.memory})"


class SavesMemory(Protocol):
    """A backbone, of which only this counts here."""

    memory: MemoryUse
    """How the denoiser's memory is saved."""


def settle(
    backbone: SavesMemory,
    plan: Callable[[MemoryUse], MemoryPlan],
    *,
    budget: int | None,
    checkpointing: str,
    offload: bool | str,
    preset: str,
) -> MemoryPlan | None:
    """Choose how memory is saved, the fastest way that fits, and tell the backbone before its denoiser is loaded.

    Args:
        plan: what a run would need if memory were saved so.
        budget: bytes that may be used; None: as many as it takes.
        checkpointing: none, some, all, or auto.
        offload: true, false, or auto.
        preset: the memory preset's name, for the error.

    Returns:
        the plan; None where nothing is to be planned: no budget, nothing asked for.

    Raises:
        UserError: an unknown way to save memory; nothing that is allowed fits into the budget.
    """
    ways = [
        replace(backbone.memory, checkpointing=which, offload=away) for which, away in _ways(checkpointing, offload)
    ]
    if budget is None:
        backbone.memory = ways[0]
        return None
    planned = None
    for way in ways:
        planned = plan(way)
        if planned.peak + RESERVE <= budget:
            backbone.memory = way
            return replace(planned, less=smaller(preset, budget))
    assert planned is not None
    room = f"at most {gib(budget - RESERVE)} GiB beside {gib(RESERVE)} GiB for the driver"
    raise UserError(
        "this does not fit into the memory there is",
        expected=f"{room}; {smaller(preset, budget)}",
        got=f"an expected peak of {planned}",
        key="memory",
    )


def smaller(preset: str, budget: int | None) -> str:
    """What needs less memory than a preset: the next smaller one, or less to train at once."""
    limit = int(preset.removesuffix("gb")) if preset.removesuffix("gb").isdigit() else (budget or 0) // GIB + 1
    following = next((size for size in PRESETS if size < limit), None)
    less = "smaller resolutions or batches"
    return f"memory={following}gb, or {less}" if following else less


def gib(size: int) -> str:
    """Bytes in GiB, e.g. "14.2"; small ones with the digits they need."""
    return f"{size / GIB:.1f}" if size >= GIB / 10 else f"{size / GIB:.2g}"


def _ways(checkpointing: str, offload: bool | str) -> list[tuple[str, bool]]:
    """What may be tried, fastest first."""
    if checkpointing not in (*CHECKPOINTING, "auto"):
        allowed = ", ".join((*CHECKPOINTING, "auto"))
        raise UserError("no such checkpointing", expected=allowed, got=str(checkpointing), key="memory.checkpointing")
    if offload not in (True, False, "auto"):
        raise UserError("offload or not", expected="true, false or auto", got=str(offload), key="memory.offload")
    kinds = CHECKPOINTING if checkpointing == "auto" else (checkpointing,)
    ways = [(which, False) for which in kinds if offload is not True]
    if offload is not False and kinds[-1] == "all":  # otherwise autograd would keep every block's copy
        ways.append(("all", True))
    if not ways:
        raise UserError(
            "offloading needs every block checkpointed",
            expected="memory.checkpointing=all or auto, or memory.offload=false",
            got=f"memory.checkpointing={checkpointing}",
            key="memory.offload",
        )
    return ways
