"""The three-layer update, its start, and its collapse."""

import math

import pytest
import torch

from metalora.core.lora import adapter_update, collapse, kaiming_uniform, merges


def test_the_start_depends_on_the_key_alone_and_fills_the_kaiming_range() -> None:
    start = kaiming_uniform((64, 100), key=(0, "p", "layer", 0))
    assert torch.equal(start, kaiming_uniform((64, 100), key=(0, "p", "layer", 0)))
    for other in [(1, "p", "layer", 0), (0, "q", "layer", 0), (0, "p", "other", 0), (0, "p", "layer", 1)]:
        assert not torch.equal(start, kaiming_uniform((64, 100), key=other))
    assert 0.099 < start.abs().max() <= 0.1 and abs(start.mean()) < 0.005


def test_the_start_is_torch_s_kaiming_uniform_with_a_of_sqrt_five() -> None:
    torch.manual_seed(0)
    theirs = torch.nn.init.kaiming_uniform_(torch.empty(200, 50), a=math.sqrt(5))
    ours = kaiming_uniform((200, 50), key=(0,))
    torch.testing.assert_close(ours.std(), theirs.std(), rtol=0.02, atol=0)
    torch.testing.assert_close(ours.abs().max(), theirs.abs().max(), rtol=0.01, atol=0)


@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_both_associations_are_the_written_product(tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    x, meta_down, mid, up = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in [(3, tokens, 6), (5, 6), (3, 2, 5), (3, 2, 4)]
    )
    update = adapter_update(x, meta_down_RI=meta_down, first_BSX=mid, up_BSO=up)
    for sample in range(3):
        for token in range(tokens):
            written = up[sample].T @ (mid[sample] @ (meta_down @ x[sample, token]))
            torch.testing.assert_close(update[sample, token], written)
    plain = adapter_update(x, meta_down_RI=None, first_BSX=collapse(meta_down, mid), up_BSO=up)
    torch.testing.assert_close(update, plain)


def test_the_cheaper_association_is_taken() -> None:
    assert merges(tokens=64, rank=1) and merges(tokens=64, rank=16)
    assert not merges(tokens=1, rank=1) and not merges(tokens=4, rank=16)
