"""What a training run may fill of the device, what it is expected to fill, and what it did."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from metalora.core.budget import GIB, MemoryPlan, gib, settle
from metalora.core.contracts import MemoryUse, TextEmbedding, TrainingPerson
from metalora.core.errors import UserError
from metalora.core.memory import free_memory
from metalora.inference.plan import plan_drawing
from metalora.running.setting import Setting
from metalora.training.plan import Work, largest, plan_step

Say = Callable[[str], None]


def plan_training(
    setting: Setting,
    people: Sequence[TrainingPerson],
    *,
    texts: Mapping[str, TextEmbedding],
    batch: int,
    identities: int,
    rank: int,
    meta_rank: int | None,
    train_meta_down: bool,
    say: Say | None,
) -> MemoryPlan | None:
    """Settle how the backbone saves memory, and tell what it will come to; None where there is no budget.

    Args:
        people: whose largest pictures are trained on.
        batch: samples of a step.
        identities: rows of the bank.
        say: told one line.

    Raises:
        UserError: a budget that is no number, or that is too small.
    """
    work = Work(
        batch=batch,
        identities=identities,
        rank=rank,
        meta_rank=meta_rank,
        train_meta_down=train_meta_down,
        latents_CHW=largest([tuple(image.latents_2CHW.shape[1:]) for person in people for image in person.images]),
        text=_longest(texts),
    )
    return _settled(setting, lambda memory: plan_step(setting.backbone, work, memory=memory), say=say)


def plan_generation(
    setting: Setting,
    *,
    texts: Mapping[str, TextEmbedding],
    batch: int,
    rank: int,
    size: tuple[int, int],
    say: Say | None,
) -> MemoryPlan | None:
    """The same for drawing `batch` images of `size` (height, width) at once."""
    return _settled(
        setting,
        lambda memory: plan_drawing(
            setting.backbone, batch=batch, rank=rank, size=size, text=_longest(texts), memory=memory
        ),
        say=say,
        drawing=True,
    )


def _settled(
    setting: Setting, plan: Callable[[MemoryUse], MemoryPlan], *, say: Say | None, drawing: bool = False
) -> MemoryPlan | None:
    budget, checkpointing = budget_of(setting), setting["memory.checkpointing"]
    if drawing and checkpointing in ("none", "some"):
        checkpointing = "auto"  # there is no backward: only offloading makes a difference
    told = settle(
        setting.backbone,
        plan,
        budget=budget,
        checkpointing=checkpointing,
        offload=setting["memory.offload"],
        preset=setting["memory.name"],
    )
    if told is not None:
        setting.backbone.release_encoders()
        free_memory()
        _hold_to(budget, setting["trainer.device"])
        if say is not None:
            say(f"memory: an expected peak of {told}")
    return told


def _longest(texts: Mapping[str, TextEmbedding]) -> TextEmbedding:
    return max(texts.values(), key=lambda text: text.tokens_BLD.shape[1])


def budget_of(setting: Setting) -> int | None:
    """Bytes that may be used: `memory.budget_gb`, never more than the GPU has; None on a CPU without a budget.

    Raises:
        UserError: no positive number.
    """
    given, capacity = setting["memory.budget_gb"], _capacity(setting["trainer.device"])
    if given is None:
        return capacity
    if isinstance(given, bool) or not isinstance(given, int | float) or given <= 0:
        raise UserError("no budget", expected="GiB, or null", got=str(given), key="memory.budget_gb")
    return int(given * GIB) if capacity is None else min(int(given * GIB), capacity)


def _capacity(device: str) -> int | None:
    """The GPU's memory: a card of 24 GB may have 22.5 GiB."""
    if device != "cuda":
        return None
    import torch

    return torch.cuda.mem_get_info()[1]


def measured(setting: Setting, plan: MemoryPlan | None, *, say: Say | None) -> dict[str, Any]:
    """What the device was filled with at most since `plan_training`, beside the plan; for a manifest."""
    if plan is None:
        return {}
    facts: dict[str, Any] = {"memory": str(plan.memory), "planned_peak_mb": plan.peak >> 20}
    if setting["trainer.device"] == "cuda":
        import torch

        peak = torch.cuda.max_memory_allocated()
        torch.cuda.set_per_process_memory_fraction(1.0)
        facts["measured_peak_mb"] = peak >> 20
        if say is not None:
            say(f"memory: a measured peak of {gib(peak)} GiB, {gib(plan.peak)} were expected")
    return facts


def _hold_to(budget: int | None, device: str) -> None:
    """A preset for a small GPU is a promise on a large one too."""
    if device != "cuda" or budget is None:
        return
    import torch

    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(min(1.0, budget / total))
    torch.cuda.reset_peak_memory_stats()
