"""The fast path of one adapted layer equals plain differentiable operations, forward and backward."""

import pytest
import torch
from torch import Tensor, nn

from metalora.adapters.linear import LayerSlot, adapted_linear
from metalora.core.lora import adapter_update

BATCH, TOKENS, WIDTH_IN, WIDTH_OUT, META_RANK = 3, 5, 6, 4, 8


def make(
    *, rank: int, meta: bool, samples: int = BATCH, dtype: torch.dtype = torch.float64
) -> tuple[nn.Linear, LayerSlot]:
    torch.manual_seed(rank)
    layer = nn.Linear(WIDTH_IN, WIDTH_OUT, dtype=dtype).requires_grad_(False)
    slot = LayerSlot(rank, WIDTH_IN, WIDTH_OUT)
    slot.meta_down = torch.randn(META_RANK, WIDTH_IN, dtype=dtype, requires_grad=True) if meta else None
    slot.first = torch.randn(samples, rank * (META_RANK if meta else WIDTH_IN), dtype=dtype, requires_grad=True)
    slot.up = torch.randn(samples, WIDTH_OUT * rank, dtype=dtype, requires_grad=True)
    return layer, slot


def written(layer: nn.Linear, x: Tensor, slot: LayerSlot) -> Tensor:
    samples = slot.first.shape[0]
    update = adapter_update(
        x.reshape(samples, -1, WIDTH_IN),
        meta_down_RI=slot.meta_down,
        first_BSX=slot.first.view(samples, slot.rank, -1),
        up_BSO=slot.up.view(samples, slot.rank, WIDTH_OUT),
    )
    return layer(x) + update.view(*x.shape[:-1], WIDTH_OUT)


@pytest.mark.parametrize("meta", [True, False])
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("samples", [1, BATCH])
@pytest.mark.parametrize("shape", [(BATCH, WIDTH_IN), (BATCH, TOKENS, WIDTH_IN), (BATCH, 2, 2, WIDTH_IN)])
def test_outputs_and_gradients(meta: bool, rank: int, samples: int, shape: tuple[int, ...]) -> None:
    layer, slot = make(rank=rank, meta=meta, samples=samples)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    inputs = [tensor for tensor in (x, slot.meta_down, slot.first, slot.up) if tensor is not None]
    ours, theirs = adapted_linear(layer, x, slot=slot), written(layer, x, slot)
    torch.testing.assert_close(ours, theirs)
    seed = torch.randn_like(ours)
    for got, expected in zip(
        torch.autograd.grad(ours, inputs, seed), torch.autograd.grad(theirs, inputs, seed), strict=True
    ):
        torch.testing.assert_close(got, expected)


def test_an_input_that_is_not_contiguous() -> None:
    layer, slot = make(rank=1, meta=True)
    wide = torch.randn(BATCH, TOKENS + 2, WIDTH_IN, dtype=torch.float64, requires_grad=True)
    for x in (wide[:, 2:], wide.transpose(0, 1).contiguous().transpose(0, 1)):
        torch.testing.assert_close(adapted_linear(layer, x, slot=slot), written(layer, x, slot))
        gradient = torch.randn(WIDTH_OUT, x.shape[1], BATCH, dtype=torch.float64).permute(2, 1, 0)
        ours = torch.autograd.grad(adapted_linear(layer, x, slot=slot), [x, slot.first], gradient)
        theirs = torch.autograd.grad(written(layer, x, slot), [x, slot.first], gradient)
        torch.testing.assert_close(ours, theirs)


def test_an_input_without_gradient_gets_none() -> None:
    layer, slot = make(rank=1, meta=True)
    x = torch.randn(BATCH, TOKENS, WIDTH_IN, dtype=torch.float64)
    adapted_linear(layer, x, slot=slot).sum().backward()
    assert x.grad is None and slot.first.grad is not None


def test_an_empty_slot_is_the_base_layer() -> None:
    layer, _ = make(rank=1, meta=True)
    x = torch.randn(BATCH, TOKENS, WIDTH_IN, dtype=torch.float64)
    assert torch.equal(adapted_linear(layer, x, slot=LayerSlot(1, WIDTH_IN, WIDTH_OUT)), layer(x))


def test_a_route_of_the_wrong_length_is_refused() -> None:
    layer, slot = make(rank=1, meta=True)
    with pytest.raises(AssertionError, match="a route of 3 samples met a batch of 6"):
        adapted_linear(layer, torch.randn(2 * BATCH, WIDTH_IN, dtype=torch.float64), slot=slot)


def test_a_subclass_of_linear_keeps_its_own_forward() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    layer, slot = make(rank=1, meta=True)
    doubled = Doubled(WIDTH_IN, WIDTH_OUT, dtype=torch.float64).requires_grad_(False)
    doubled.load_state_dict(layer.state_dict())
    x = torch.randn(BATCH, TOKENS, WIDTH_IN, dtype=torch.float64)
    expected = adapted_linear(layer, x, slot=slot) + layer(x)
    torch.testing.assert_close(adapted_linear(doubled, x, slot=slot), expected)


def test_adapters_in_float32_serve_a_bfloat16_layer() -> None:
    layer, slot = make(rank=2, meta=True, dtype=torch.float32)
    x = torch.randn(BATCH, TOKENS, WIDTH_IN)
    expected = adapted_linear(layer, x, slot=slot)
    got = adapted_linear(layer.bfloat16(), x.bfloat16(), slot=slot)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, rtol=0.05, atol=0.1)
    got.sum().backward()
    assert slot.first.grad.dtype == slot.meta_down.grad.dtype == torch.float32


def test_only_the_input_is_kept_for_backward() -> None:
    layer, slot = make(rank=1, meta=True)
    slot.meta_down = slot.meta_down.detach()
    x = torch.randn(BATCH, 50, WIDTH_IN, dtype=torch.float64, requires_grad=True)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        adapted_linear(layer, x, slot=slot)
    own = {layer.weight.data_ptr(), slot.first.data_ptr(), slot.up.data_ptr(), slot.meta_down.data_ptr(), x.data_ptr()}
    extra = [tensor for tensor in kept if tensor.data_ptr() not in own]
    assert sorted(tuple(tensor.shape) for tensor in extra) == [(BATCH, 1, WIDTH_IN), (BATCH, 50, 1)]
