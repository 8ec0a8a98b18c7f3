"""AdamW that moves the identities present in a step and nobody else.

A dense optimizer over the bank would decay and drift absent identities. The rows' gradient is sparse and names its
rows; each row keeps its own step count, and the arithmetic is torch's own functional AdamW, so an identity trained in
any company is trained as `torch.optim.AdamW` would train it alone.

Shape legend: K identities, P numbers per identity, B rows present.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from metalora.adapters.bank import AdapterBank, row_sizes


class BankAdamW(torch.optim.Optimizer):
    """AdamW over a bank: group 0 is Meta-Down (absent for plain LoRA), the last group the rows.

    Parameters whose gradient is None (Meta-Down in warm-up) are left alone entirely: no decay, no moments, no step.
    """

    def __init__(
        self,
        bank: AdapterBank,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        groups: list[dict[str, Any]] = [{"params": [bank.rows], "role": "rows"}]
        if len(bank.meta_down):
            groups.insert(0, {"params": list(bank.meta_down.values()), "role": "meta_down"})
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._bank = bank

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move what has a gradient; `closure` as in torch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            present = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not present:
                continue
            if group["role"] == "rows":
                self._step_rows(present[0], group)
            else:
                self._step_meta_down(present, group)
        return loss

    def _step_meta_down(self, parameters: Sequence[Tensor], group: dict[str, Any]) -> None:
        states = [self._state(parameter, steps=()) for parameter in parameters]
        grads = [parameter.grad for parameter in parameters]
        _adamw(parameters, grads, states, group)

    def _step_rows(self, rows_KP: Tensor, group: dict[str, Any]) -> None:
        state = self._state(rows_KP, steps=(len(rows_KP),))
        present, grad_BP = present_rows(self._bank)
        steps_K = state["step"]
        if len(present) == len(rows_KP) and bool((steps_K == steps_K[0]).all()):
            shared = {**state, "step": steps_K[0].clone()}
            _adamw([rows_KP], [grad_BP], [shared], group)
            steps_K.fill_(shared["step"])
            return
        per_row = [{name: tensor[index] for name, tensor in state.items()} for index in present]
        _adamw([rows_KP[index] for index in present], list(grad_BP), per_row, group)

    def _state(self, parameter: Tensor, *, steps: tuple[int, ...]) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(steps)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state

    def row_state(self) -> dict[str, Tensor]:
        """Moments and step counts of the rows, those of rows that were never trained included; live tensors."""
        rows_KP = self.param_groups[-1]["params"][0]
        return self._state(rows_KP, steps=(len(rows_KP),))

    @torch.no_grad()
    def reset_rows(self, rows: Iterable[int] | None = None) -> None:
        """Forget moments and step counts of the given rows (all by default), for identities that start afresh."""
        state = self.state.get(self.param_groups[-1]["params"][0])
        if not state:
            return
        index = slice(None) if rows is None else list(rows)
        for tensor in state.values():
            tensor[index] = 0


def present_rows(bank: AdapterBank) -> tuple[list[int], Tensor]:
    """Which rows have a gradient (ascending, each once) and their gradients [B, P], batch duplicates summed.

    What one route's backward leaves is that already, and the host knows its rows: the device is not asked. Without a
    backward there are none.
    """
    grad = bank.rows.grad
    if grad is None:
        return [], bank.rows.detach()[:0]
    assert grad.is_sparse
    if bank.present is not None and grad._nnz() == len(bank.present):
        return bank.present, grad._values()
    bank.rows.grad = grad = grad.coalesce()  # of several backwards, or of none
    return grad.indices()[0].tolist(), grad.values()


@torch.no_grad()
def clip_rows_(bank: AdapterBank, *, max_norm: float) -> Tensor:
    """Scale each identity's gradient to a norm of at most `max_norm`, by its own norm alone.

    Returns:
        the norms before clipping, one per identity present, in row order.
    """
    _, values_BP = present_rows(bank)
    norms_B = torch.linalg.vector_norm(values_BP, dim=1)
    values_BP.mul_((max_norm / (norms_B + 1e-6)).clamp(max=1.0).unsqueeze(1))
    return norms_B


@torch.no_grad()
def part_norms(bank: AdapterBank) -> tuple[Tensor, Tensor]:
    """Norms of each present identity's gradient of Mid (without Meta-Down: Down) and of Up, each [B] in row order."""
    _, values_BP = present_rows(bank)
    pieces = values_BP.split(
        row_sizes(bank.layers, rank=bank.rank, meta_rank=bank.meta_rank), dim=1
    )  # Mid and Up of every layer in turn
    first, up = (torch.linalg.vector_norm(torch.cat(part, dim=1), dim=1) for part in (pieces[::2], pieces[1::2]))
    return first, up


@torch.no_grad()
def clip_meta_down_(bank: AdapterBank, *, max_norm: float) -> Tensor:
    """Scale Meta-Down's gradient to a global norm of at most `max_norm`; a no-op in warm-up.

    Returns:
        the norm before clipping.
    """
    return torch.nn.utils.clip_grad_norm_(bank.meta_down.parameters(), max_norm)


def _adamw(
    parameters: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    states: Sequence[dict[str, Tensor]],
    group: dict[str, Any],
) -> None:
    adamw(
        list(parameters),
        list(grads),  # pyright: ignore[reportArgumentType]
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        [state["step"] for state in states],
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
