"""The identity bank: how rows start, what they hold, what leaves and enters them."""

import pytest
import torch

from metalora.adapters.bank import AdapterBank, row_sizes
from metalora.adapters.optimizer import present_rows
from metalora.core.contracts import LoraFile
from metalora.core.errors import UserError
from metalora.core.lora import LayerShape

LAYERS = {"blocks.0.first": LayerShape(6, 4), "blocks.0.second": LayerShape(4, 10)}


def make(identities: list[str], *, rank: int = 2, meta_rank: int | None = 3, seed: int = 0) -> AdapterBank:
    return AdapterBank(LAYERS, identities=identities, rank=rank, meta_rank=meta_rank, seed=seed)


def shaken(bank: AdapterBank) -> AdapterBank:
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    return bank


@pytest.mark.parametrize("meta_rank", [3, None])
def test_a_cohort_starts_bit_for_bit_where_single_runs_start(meta_rank: int | None) -> None:
    cohort = make(["a", "b", "c"], meta_rank=meta_rank)
    for identity in cohort.identities:
        alone = make([identity], meta_rank=meta_rank)
        assert torch.equal(alone.rows[0], cohort.rows[cohort.row_of(identity)])
    assert len(torch.unique(cohort.rows, dim=0)) == 3
    assert not torch.equal(make(["a"], seed=1).rows, make(["a"]).rows)


def test_up_starts_at_zero_and_the_rest_does_not() -> None:
    lora = make(["a"]).collapsed("a")
    assert all(not up.any() for up in lora.up.values())
    assert all(down.all() for down in lora.down.values())


def test_a_new_visit_starts_afresh_and_unused_rows_are_zero() -> None:
    bank = make(["a", "b", "c"])
    first_visit = bank.rows.detach().clone()
    shaken(bank).reset_rows(["b", "d"], visit=1)
    assert bank.identities == ["b", "d"] and bank.row_of("d") == 1
    assert not torch.equal(bank.rows[0], first_visit[1]) and not bank.rows[2].any()
    bank.reset_rows(["a", "b", "c"], visit=0)
    assert torch.equal(bank.rows, first_visit)


def test_assigning_rows_keeps_their_numbers() -> None:
    bank = make(["a", "b"])
    before = bank.rows.detach().clone()
    bank.assign_rows(["c", "d"])
    assert bank.identities == ["c", "d"] and torch.equal(bank.rows, before)


def test_the_state_is_meta_down_and_rows_and_loading_demands_exactly_that() -> None:
    bank = shaken(make(["a", "b"]))
    state = bank.state_dict()
    assert sorted(state) == ["meta_down.blocks/0/first", "meta_down.blocks/0/second", "rows"]
    other = make(["a", "b"], seed=5)
    other.load_state_dict(state)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(other.parameters(), bank.parameters(), strict=True))
    with pytest.raises(RuntimeError, match="Missing key"):
        make(["a", "b"]).load_state_dict({"rows": state["rows"]})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        make(["a", "b"]).load_state_dict({**state, "transformer.weight": torch.zeros(1)})


def test_a_rank_above_meta_down_s_is_refused() -> None:
    assert make(["a"], rank=3).rank == 3
    with pytest.raises(UserError, match=r"larger than Meta-Down's.*at most r1 = 3.*got 4.*key: rank"):
        make(["a"], rank=4)
    with pytest.raises(UserError, match=r"no such rank.*got 0.*key: rank"):
        make(["a"], rank=0)


def test_row_sizes_add_up_to_the_row() -> None:
    assert row_sizes(LAYERS, rank=2, meta_rank=3) == [6, 8, 6, 20]
    assert row_sizes(LAYERS, rank=2, meta_rank=None) == [12, 8, 8, 20]
    assert make(["a"]).rows.shape == (1, 40) and make(["a"], meta_rank=None).rows.shape == (1, 48)


def test_the_gradient_names_the_rows_that_were_present() -> None:
    bank = make(["a", "b", "c", "d"])
    bank.set_route(torch.tensor([3, 1, 3]))
    sum(slot.first.sum() + 2 * slot.up.sum() for slot in bank.slots.values()).backward()
    grad = bank.rows.grad
    assert grad.is_sparse
    grad = grad.coalesce()
    assert grad.indices().tolist() == [[1, 3]]
    expected = torch.cat(
        [torch.full((size,), 1.0 + index % 2) for index, size in enumerate(row_sizes(LAYERS, rank=2, meta_rank=3))]
    )
    assert torch.equal(grad.values(), torch.stack([expected, 2 * expected]))


def test_training_meta_down_or_not_is_seen_at_once_and_never_touches_requires_grad() -> None:
    bank = make(["a"])
    bank.set_route(torch.tensor([0]))
    for value in (False, True, False):
        bank.train_meta_down = value
        assert all(slot.meta_down.requires_grad is value for slot in bank.slots.values())
        assert all(parameter.requires_grad for parameter in bank.parameters())


def test_a_lora_put_into_a_plain_bank_comes_out_again() -> None:
    lora = shaken(make(["a", "b"])).collapsed("b")
    bank = make(["x", "y"], meta_rank=None, rank=4)
    bank.load_lora("y", lora)
    back = bank.collapsed("y")
    for name in LAYERS:
        assert torch.equal(back.down[name][:2], lora.down[name]) and not back.down[name][2:].any()
        assert torch.equal(back.up[name][:, :2], lora.up[name]) and not back.up[name][:, 2:].any()


def test_a_lora_that_does_not_fit_is_refused() -> None:
    lora = make(["a"]).collapsed("a")
    with pytest.raises(UserError, match=r"layer blocks.0.first.*rank at most 1, 6 -> 4.*rank 2"):
        make(["x"], meta_rank=None, rank=1).load_lora("x", lora)
    missing = LoraFile(down={"blocks.0.first": lora.down["blocks.0.first"]}, up=lora.up, metadata={})
    with pytest.raises(UserError, match=r"1 missing \['blocks.0.second'\]"):
        make(["x"], meta_rank=None, rank=2).load_lora("x", missing)


def test_a_meta_down_that_does_not_fit_is_refused() -> None:
    source = shaken(make(["a"]))
    meta_down = {name: source.meta_down_of(name).detach() for name in LAYERS}
    bank = make(["b"], seed=9)
    bank.load_meta_down(meta_down)
    assert all(torch.equal(bank.meta_down_of(name), meta_down[name]) for name in LAYERS)
    with pytest.raises(UserError, match=r"layer blocks.0.first.*\(4, 6\).*got \(3, 6\)"):
        make(["b"], meta_rank=4).load_meta_down(meta_down)
    with pytest.raises(UserError, match="1 unknown"):
        bank.load_meta_down({**meta_down, "blocks.1.first": torch.zeros(3, 6)})


def test_a_new_route_does_not_take_the_gradient_of_the_last_one() -> None:
    bank = AdapterBank(LAYERS, identities=["a", "b", "c"], rank=1, meta_rank=None, seed=0)
    bank.set_route(torch.tensor([0]))
    sum(slot.first.sum() for slot in bank.slots.values()).backward()
    bank.set_route(torch.tensor([2]))
    rows, _ = present_rows(bank)
    assert rows == [0]
