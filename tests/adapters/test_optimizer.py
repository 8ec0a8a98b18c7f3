"""The row-wise AdamW is torch's AdamW run per identity."""

import pytest
import torch
from torch import Tensor

from metalora.adapters.bank import AdapterBank
from metalora.adapters.optimizer import BankAdamW, clip_meta_down_, clip_rows_, present_rows
from metalora.core.lora import LayerShape

LAYERS = {"layer": LayerShape(5, 70), "other": LayerShape(9, 30)}
SETTINGS = {"lr": 0.03, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1}
# Present rows per step: duplicates, absences, everyone, one alone.
ROUTES = [[0, 2], [2, 2, 1], [0, 1, 2, 3], [3], [0, 1, 2, 3], [1, 0, 1, 1]]


def make_bank() -> AdapterBank:
    return AdapterBank(LAYERS, identities=list("abcd"), rank=2, meta_rank=3, seed=0)


def gradient(bank: AdapterBank, route: list[int], step: int) -> Tensor:
    """Give the bank's rows the gradient of a linear loss; return what each sample contributed."""
    values = torch.randn(len(route), bank.rows.shape[1], generator=torch.Generator().manual_seed(step))
    set_gradient(bank, route, values)
    return values


def set_gradient(bank: AdapterBank, route: list[int], values: Tensor) -> None:
    bank.rows.grad = torch.sparse_coo_tensor(
        torch.tensor([route]), values.clone(), bank.rows.shape, check_invariants=True
    )


def test_rows_move_as_torch_moves_each_alone() -> None:
    bank = make_bank()
    optimizer = BankAdamW(bank, **SETTINGS)
    alone = [torch.nn.Parameter(row.detach().clone()) for row in bank.rows]
    theirs = [torch.optim.AdamW([row], **SETTINGS) for row in alone]
    for step, route in enumerate(ROUTES):
        values = gradient(bank, route, step)
        optimizer.step()
        for row in set(route):
            alone[row].grad = values[torch.tensor(route) == row].sum(0)
            theirs[row].step()
        for row in range(4):
            torch.testing.assert_close(bank.rows[row], alone[row], rtol=2e-6, atol=1e-8)
    steps = optimizer.state[bank.rows]["step"]
    assert steps.tolist() == [other.state[row]["step"].item() for other, row in zip(theirs, alone, strict=True)]
    assert steps.tolist() == [4, 4, 4, 3]


def test_absent_rows_and_their_state_keep_every_bit() -> None:
    bank = make_bank()
    optimizer = BankAdamW(bank, **SETTINGS)
    gradient(bank, [0, 1, 2, 3], 0)
    optimizer.step()
    for step, route in enumerate(ROUTES[:2] + ROUTES[3:4], start=1):
        absent = sorted(set(range(4)) - set(route))
        state = optimizer.state[bank.rows]
        before = [tensor[absent].clone() for tensor in (bank.rows.detach(), *state.values())]
        moved = bank.rows.detach().clone()
        gradient(bank, route, step)
        optimizer.step()
        after = [tensor[absent] for tensor in (bank.rows.detach(), *state.values())]
        assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
        assert all(not torch.equal(moved[row], bank.rows[row]) for row in route)


def test_meta_down_moves_as_in_torch_and_not_at_all_without_gradient() -> None:
    bank = make_bank()
    optimizer = BankAdamW(bank, **SETTINGS)
    copies = [torch.nn.Parameter(parameter.detach().clone()) for parameter in bank.meta_down.values()]
    theirs = torch.optim.AdamW(copies, **SETTINGS)
    gradient(bank, [0], 0)
    optimizer.step()
    assert all(torch.equal(ours, copy) for ours, copy in zip(bank.meta_down.values(), copies, strict=True))
    assert not any(parameter in optimizer.state for parameter in bank.meta_down.values())
    for step in range(4):
        for ours, copy in zip(bank.meta_down.values(), copies, strict=True):
            ours.grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(step))
            copy.grad = ours.grad.clone()
        optimizer.step()
        theirs.step()
        assert all(torch.equal(ours, copy) for ours, copy in zip(bank.meta_down.values(), copies, strict=True))
        if step == 1:  # a warm-up in between: neither decay nor momentum moves it
            before = [parameter.detach().clone() for parameter in bank.meta_down.values()]
            moments = [optimizer.state[parameter]["exp_avg"].clone() for parameter in bank.meta_down.values()]
            optimizer.zero_grad()
            gradient(bank, [1], step)
            optimizer.step()
            assert all(torch.equal(old, new) for old, new in zip(before, bank.meta_down.values(), strict=True))
            after = [optimizer.state[parameter]["exp_avg"] for parameter in bank.meta_down.values()]
            assert all(torch.equal(old, new) for old, new in zip(moments, after, strict=True))


def test_a_saved_optimizer_goes_on_bit_for_bit() -> None:
    bank = make_bank()
    optimizer = BankAdamW(bank, **SETTINGS)
    for step, route in enumerate(ROUTES[:3]):
        gradient(bank, route, step)
        optimizer.step()
    other = make_bank()
    other.load_state_dict({name: tensor.clone() for name, tensor in bank.state_dict().items()})
    resumed = BankAdamW(other, **SETTINGS)
    state = optimizer.state_dict()
    state["state"] = {key: {k: v.clone() for k, v in value.items()} for key, value in state["state"].items()}
    resumed.load_state_dict(state)
    for step, route in enumerate(ROUTES[3:], start=3):
        gradient(bank, route, step)
        gradient(other, route, step)
        optimizer.step()
        resumed.step()
        assert torch.equal(bank.rows, other.rows)


def test_resetting_rows_forgets_theirs_alone() -> None:
    bank = make_bank()
    optimizer = BankAdamW(bank, **SETTINGS)
    optimizer.reset_rows()
    gradient(bank, [0, 1, 2, 3], 0)
    optimizer.step()
    optimizer.reset_rows([1, 3])
    state = optimizer.state[bank.rows]
    assert state["step"].tolist() == [1, 0, 1, 0]
    assert not state["exp_avg"][[1, 3]].any() and not state["exp_avg_sq"][[1, 3]].any()
    assert state["exp_avg"][[0, 2]].all()
    optimizer.reset_rows()
    assert not any(tensor.any() for tensor in state.values())


def test_each_identity_is_clipped_by_its_own_norm() -> None:
    bank = make_bank()
    values = gradient(bank, [2, 0, 2], 0)
    values[1] *= 1e-3
    set_gradient(bank, [2, 0, 2], values)
    norms = clip_rows_(bank, max_norm=1.0)
    total = values[0] + values[2]
    torch.testing.assert_close(norms, torch.stack([values[1].norm(), total.norm()]))
    index, clipped = present_rows(bank)
    assert index == [0, 2]
    assert torch.equal(clipped[0], values[1])
    alone = torch.nn.Parameter(torch.zeros_like(total))
    alone.grad = total.clone()
    torch.nn.utils.clip_grad_norm_([alone], 1.0)
    torch.testing.assert_close(clipped[1], alone.grad, rtol=1e-6, atol=0)


def test_meta_down_is_clipped_by_its_global_norm() -> None:
    bank = make_bank()
    assert clip_meta_down_(bank, max_norm=1.0) == 0
    for parameter in bank.meta_down.values():
        parameter.grad = torch.ones_like(parameter)
    torch.testing.assert_close(clip_meta_down_(bank, max_norm=1.0), torch.tensor(42.0).sqrt())
    total = torch.cat([parameter.grad.flatten() for parameter in bank.meta_down.values()])
    torch.testing.assert_close(total.norm(), torch.tensor(1.0))


def test_a_plain_bank_has_rows_alone() -> None:
    bank = AdapterBank(LAYERS, identities=["a"], rank=2, meta_rank=None, seed=0)
    optimizer = BankAdamW(bank, **SETTINGS)
    assert [group["role"] for group in optimizer.param_groups] == ["rows"]
    assert [group["role"] for group in BankAdamW(make_bank(), **SETTINGS).param_groups] == ["meta_down", "rows"]


def test_the_closure_s_loss_is_returned() -> None:
    bank = make_bank()
    gradient(bank, [0], 0)
    assert BankAdamW(bank, **SETTINGS).step(lambda: 7.0) == pytest.approx(7.0)
