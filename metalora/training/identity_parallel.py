"""Stage 1 in several processes, each with people of its own: only Meta-Down's gradient is ever sent.

The loss is a sum over identities of each one's own mean, so the gradient of all is the plain sum of the processes'
gradients, whatever number of samples each had. Mid, Up and their moments stay where their people are; a saved state
has them all, by identity, in the very form that one process writes and reads.

Shape legend: K identities of the whole bank.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from metalora.adapters.bank import AdapterBank
from metalora.adapters.optimizer import BankAdamW
from metalora.people.share import Share
from metalora.training.launcher import RankLauncher
from metalora.training.ranks import Ranks

ROWS = "bank.rows"
"""The bank's rows in a module's state dict."""


class IdentityParallel(DDPStrategy):
    """Lightning's process groups without DDP around the module: its reducer wants every parameter in every backward,
    and Meta-Down has no gradient in warm-up.

    Args:
        ranks: the processes.
        share: this one's people.
        bank: this one's rows, and Meta-Down.
    """

    def __init__(self, ranks: Ranks, *, share: Share, bank: AdapterBank) -> None:
        super().__init__(timeout=timedelta(seconds=ranks.timeout))
        self.ranks, self.share, self.bank = ranks, share, bank

    @property
    def world_size(self) -> int:
        """What the Trainer asks. Told that there are several, it would send a word about signals in every iteration,
        and from within a signal handler; `StateKeeper` agrees about these instead, now and then."""
        return 1

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = RankLauncher(self.cluster_environment, self.ranks)

    def configure_ddp(self) -> None:
        """Nothing is wrapped."""

    def post_backward(self, closure_loss: Tensor) -> None:
        """Sum Meta-Down's gradient over the processes; in warm-up nothing is sent."""
        if self.bank.train_meta_down:
            sum_gradients(list(self.bank.meta_down.parameters()))

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The module's state; in process 0, with everybody's rows."""
        state = super().lightning_module_state_dict()
        return {**state, ROWS: self._gathered(state[ROWS])}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The optimizer's state; in process 0, with everybody's moments and steps."""
        own = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        assert isinstance(own, BankAdamW)
        rows = own.row_state()  # also of a process whose people have not had a turn yet
        state = own.state_dict()
        state["state"][_rows_key(state)] = {name: self._gathered(rows[name]) for name in sorted(rows)}
        return state

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this process's rows out of a state of any number of processes."""
        state = checkpoint["state_dict"]
        super().load_model_state_dict({"state_dict": {**state, ROWS: self._own(state[ROWS])}}, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's moments and steps."""
        (state,) = checkpoint["optimizer_states"]
        key = _rows_key(state)
        rows = {name: self._own(values) for name, values in state["state"][key].items()}
        super().load_optimizer_state_dict({"optimizer_states": [{**state, "state": {**state["state"], key: rows}}]})

    def _own(self, values_K: Tensor) -> Tensor:
        return values_K[self.share.rows_of(self.ranks.rank)]

    def _gathered(self, values: Tensor) -> Tensor:
        """In process 0, a tensor over all rows from every process's own; elsewhere what was given."""
        mine = values.detach().to(self.root_device).contiguous()
        if self.ranks.rank > 0:
            dist.send(mine, dst=0)
            return values
        values_K = torch.empty(self.share.total, *values.shape[1:], dtype=values.dtype)
        values_K[self.share.rows_of(0)] = mine.cpu()
        for rank in range(1, self.ranks.world):
            rows = self.share.rows_of(rank)
            theirs = torch.empty(len(rows), *values.shape[1:], dtype=values.dtype, device=self.root_device)
            dist.recv(theirs, src=rank)
            values_K[rows] = theirs.cpu()
        return values_K


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Sum gradients over the processes, all in one message; a parameter without one counts as zero."""
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    dist.all_reduce(flat)
    for parameter, piece in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = piece.view_as(parameter)


def summed(tensor: Tensor, trainer: Trainer) -> Tensor:
    """The sum over the processes of a run: every one has to ask; the tensor itself where there is one process."""
    if not isinstance(trainer.strategy, IdentityParallel):
        return tensor
    total = tensor.detach().clone().to(trainer.strategy.root_device)
    dist.all_reduce(total)
    return total


def agreed(wishes: Sequence[bool], trainer: Trainer, *, iteration: int) -> tuple[bool, ...]:
    """Which wishes any process has. Several processes ask each other when a row of metrics is due, never in between:
    until then, nobody's is granted."""
    if not isinstance(trainer.strategy, IdentityParallel):
        return tuple(wishes)
    if (iteration + 1) % trainer.log_every_n_steps:
        return (False,) * len(wishes)
    return tuple(bool(count) for count in summed(torch.tensor(wishes, dtype=torch.float32), trainer).tolist())


def _rows_key(state: Mapping[str, Any]) -> int:
    return state["param_groups"][-1]["params"][0]
