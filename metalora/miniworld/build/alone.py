"""A training of one module by AdamW in this process: restored from its checkpoint, stepped, saved."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from metalora.miniworld.build.loop import (
    Plan,
    module_tensors,
    optimizer_tensors,
    read_checkpoint,
    restore_module,
    restore_optimizer,
    run_steps,
    write_checkpoint,
)


@dataclass
class Alone:
    """What one training keeps; made again with the same arguments it goes on from its checkpoint.

    Args:
        rate: learning rate at its highest; the plan lowers it.
        checkpoint: the file that is written; its log lies beside it with the ending .jsonl.
        clip: the gradient's largest norm.
        beside: what is trained and saved beside the module, by name.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    plan: Plan
    rate: float
    checkpoint: Path
    clip: float = 1.0
    beside: Mapping[str, nn.Parameter] = field(default_factory=dict)
    start: int = field(default=0, init=False)
    """Steps that were done before."""
    seconds: float = field(default=0.0, init=False)
    """What they took."""

    def __post_init__(self) -> None:
        if self.checkpoint.is_file():
            tensors, notes = read_checkpoint(self.checkpoint)
            restore_module(self.module, tensors, "model.")
            restore_optimizer(self.optimizer, tensors, "optimizer.")
            for name, parameter in self.beside.items():
                parameter.data.copy_(tensors[name])
            self.start, self.seconds = notes["step"], notes["seconds"]

    def descend(self, loss: Tensor, *, step: int) -> None:
        """Backward and one AdamW step at the plan's rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * self.plan.rate(step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [*self.module.parameters(), *self.beside.values()]
        torch.nn.utils.clip_grad_norm_(parameters, self.clip, foreach=True)
        self.optimizer.step()

    def run(
        self, one_step: Callable[[int], Mapping[str, float]], *, name: str, batch: int, quiet: bool
    ) -> dict[str, float]:
        """Do what is left of the plan, as `run_steps` does.

        Returns:
            Steps, samples and seconds of the whole training.
        """
        if self.start < self.plan.steps:
            self.seconds = run_steps(
                name=name,
                plan=self.plan,
                start=self.start,
                one_step=one_step,
                save=self._save,
                seconds_before=self.seconds,
                log=self.checkpoint.with_suffix(".jsonl"),
                batch=batch,
                quiet=quiet,
            )
        return {"steps": self.plan.steps, "samples": self.plan.steps * batch, "seconds": round(self.seconds, 1)}

    def _save(self, step: int, spent: float) -> None:
        tensors = module_tensors(self.module, "model.") | optimizer_tensors(self.optimizer, "optimizer.")
        tensors |= {name: parameter.detach().clone() for name, parameter in self.beside.items()}
        write_checkpoint(self.checkpoint, tensors, notes={"step": step, "seconds": spent})
