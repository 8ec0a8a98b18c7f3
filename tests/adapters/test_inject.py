"""Adapters inside a FLUX transformer: exactness of the fresh, the routed, the absent and the collapsed."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from metalora.adapters.artifacts import load_lora, save_lora
from metalora.adapters.bank import AdapterBank
from metalora.adapters.inject import Injection, eject, inject, layer_shapes
from metalora.adapters.optimizer import BankAdamW, clip_rows_
from metalora.backbones.backbone import DiffusersBackbone
from metalora.core.contracts import TextEmbedding
from metalora.core.errors import UserError
from metalora.core.flow import per_sample_loss
from metalora.core.lora import LayerShape

IDENTITIES = ["ann", "bob", "eve", "guy"]
ROUTE = [2, 0, 2, 1]
META_RANK, RANK = 8, 2


@dataclass
class World:
    """A tiny backbone carrying a bank, and one batch for it."""

    backbone: DiffusersBackbone
    bank: AdapterBank
    injection: Injection
    latents: Tensor
    noise: Tensor
    t: Tensor
    text: TextEmbedding

    def predict(self, samples: list[int] | None = None) -> Tensor:
        pick = torch.tensor(range(len(ROUTE)) if samples is None else samples)
        return self.backbone.predict(self.latents[pick], t_B=self.t[pick], text=self.text.rows(pick), guidance=1.0)

    def gradients(self, samples: list[int] | None = None) -> tuple[Tensor, Tensor, dict[str, Tensor | None]]:
        """Prediction, dense gradient of the rows, gradients of Meta-Down, for a batch of the given samples."""
        samples = list(range(len(ROUTE))) if samples is None else samples
        self.bank.zero_grad()
        self.bank.set_route(torch.tensor(ROUTE)[samples])
        prediction = self.predict(samples)
        per_sample_loss(prediction, self.noise[samples]).sum().backward()
        assert self.bank.rows.grad is not None
        return (
            prediction.detach(),
            self.bank.rows.grad.to_dense(),
            {name: parameter.grad for name, parameter in self.bank.meta_down.items()},
        )


def shake(bank: AdapterBank) -> None:
    """Numbers as after training: Up is no longer zero."""
    with torch.no_grad():
        bank.rows += 0.2 * torch.randn(bank.rows.shape, generator=torch.Generator().manual_seed(5))


def make_world(backbone: DiffusersBackbone, *, rank: int, meta_rank: int | None) -> World:
    generator = torch.Generator().manual_seed(1)
    bank = AdapterBank(
        layer_shapes(backbone.target_layers()), identities=IDENTITIES, rank=rank, meta_rank=meta_rank, seed=0
    )
    return World(
        backbone=backbone,
        bank=bank,
        injection=inject(backbone.denoiser, bank),
        latents=torch.randn(len(ROUTE), 4, 4, 6, generator=generator),
        noise=torch.randn(len(ROUTE), 4, 4, 6, generator=generator),
        t=torch.rand(len(ROUTE), generator=generator),
        text=backbone.encode_text(["a photo of man", "a woman", "pencil drawing of man", "a man on beach"]),
    )


@pytest.fixture(
    params=[(RANK, META_RANK), (RANK, None), (1, META_RANK), (1, None)],
    ids=["meta_lora", "lora", "meta_lora rank 1", "lora rank 1"],
)
def world(request: pytest.FixtureRequest, tiny_backbone: DiffusersBackbone) -> Iterator[World]:
    rank, meta_rank = request.param
    yield make_world(tiny_backbone, rank=rank, meta_rank=meta_rank)


def test_a_fresh_adapter_changes_no_bit(world: World) -> None:
    world.bank.set_route(torch.tensor(ROUTE))
    for layer in world.backbone.target_layers().values():  # a bias of zero must not mask a difference
        layer.bias.data.normal_(generator=torch.Generator().manual_seed(2))
    fresh = world.predict()
    world.bank.clear_route()
    cleared = world.predict()
    eject(world.injection)
    bare = world.predict()
    assert torch.equal(fresh.view(torch.int32), bare.view(torch.int32))
    assert torch.equal(cleared.view(torch.int32), bare.view(torch.int32))


def test_a_trained_adapter_does_and_ejecting_ends_it(world: World) -> None:
    bare = world.predict()
    shake(world.bank)
    world.bank.set_route(torch.tensor(ROUTE))
    assert (world.predict() - bare).abs().max() > 0.01
    eject(world.injection)
    assert torch.equal(world.predict(), bare)
    assert not any("forward" in vars(module) for module in world.backbone.denoiser.modules())


def test_names_and_state_of_the_model_stay(world: World) -> None:
    injected = list(world.backbone.denoiser.state_dict())
    layers = list(world.backbone.target_layers())
    eject(world.injection)
    assert injected == list(world.backbone.denoiser.state_dict())
    assert layers == list(world.backbone.target_layers()) and len(layers) == 14 + 6
    assert not any("adapter" in name for name in injected)


def test_a_mixed_batch_equals_each_identity_alone(world: World) -> None:
    shake(world.bank)
    mixed, mixed_rows, mixed_meta = world.gradients()
    summed_rows = torch.zeros_like(mixed_rows)
    summed_meta = {name: torch.zeros_like(parameter) for name, parameter in world.bank.meta_down.items()}
    for row in sorted(set(ROUTE)):
        samples = [sample for sample, other in enumerate(ROUTE) if other == row]
        alone, rows, meta = world.gradients(samples)
        torch.testing.assert_close(alone, mixed[samples], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(rows[row], mixed_rows[row], rtol=1e-4, atol=1e-6)
        summed_rows += rows
        for name, grad in meta.items():
            summed_meta[name] += grad
    torch.testing.assert_close(summed_rows, mixed_rows, rtol=1e-4, atol=1e-6)
    assert not mixed_rows[3].any() and mixed_rows[:3].any(dim=1).all()
    for name, total in summed_meta.items():
        torch.testing.assert_close(total, mixed_meta[name], rtol=1e-4, atol=1e-6)


def test_a_bank_of_one_equals_its_row_in_a_cohort(world: World) -> None:
    shake(world.bank)
    samples = [0, 2]
    prediction, rows, meta = world.gradients(samples)
    eject(world.injection)
    alone = make_world(world.backbone, rank=world.bank.rank, meta_rank=world.bank.meta_rank)
    eject(alone.injection)
    single = AdapterBank(
        world.bank.layers, identities=["eve"], rank=world.bank.rank, meta_rank=world.bank.meta_rank, seed=0
    )
    with torch.no_grad():
        single.rows.copy_(world.bank.rows[2:3])
    inject(world.backbone.denoiser, single)
    single.set_route(torch.tensor([0, 0]))
    ours = alone.predict(samples)
    per_sample_loss(ours, alone.noise[samples]).sum().backward()
    torch.testing.assert_close(ours, prediction, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(single.rows.grad.to_dense()[0], rows[2], rtol=1e-4, atol=1e-6)
    for name, parameter in single.meta_down.items():
        torch.testing.assert_close(parameter.grad, meta[name], rtol=1e-4, atol=1e-6)


def test_gradient_checkpointing_gives_the_same_gradients(world: World) -> None:
    shake(world.bank)
    plain = world.gradients()
    world.backbone.denoiser.enable_gradient_checkpointing()
    calls = []
    handle = next(iter(world.injection.layers.values())).register_forward_hook(lambda *_: calls.append(1))
    checkpointed = world.gradients()
    handle.remove()
    assert len(calls) == 2, "nothing was recomputed"
    torch.testing.assert_close(plain, checkpointed, rtol=0, atol=0)


def test_autocast(world: World) -> None:
    shake(world.bank)
    expected, rows, meta = world.gradients()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, rows_16, meta_16 = world.gradients()
    torch.testing.assert_close(got.float(), expected, rtol=0.05, atol=0.1)
    assert rows_16.dtype == torch.float32
    cosine = torch.nn.functional.cosine_similarity
    assert (cosine(rows_16[:3], rows[:3]) > 0.95).all()
    for name, grad in meta.items():
        assert cosine(meta_16[name].flatten(), grad.flatten(), dim=0) > 0.95


def test_a_fresh_adapter_changes_no_bit_under_autocast(world: World) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        world.bank.set_route(torch.tensor(ROUTE))
        fresh = world.predict()
        world.bank.clear_route()
        assert torch.equal(fresh, world.predict())


def test_a_flux_block_compiles_without_a_graph_break(tiny_backbone: DiffusersBackbone) -> None:
    world = make_world(tiny_backbone, rank=RANK, meta_rank=META_RANK)
    shake(world.bank)
    eager = world.gradients()
    world.backbone.denoiser.single_transformer_blocks[0].compile(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(eager, world.gradients(), rtol=1e-4, atol=1e-5)


class Toy(torch.nn.Module):
    """A 3-D and a 2-D Linear, as a block has them."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.modulation = torch.nn.Linear(6, 5), torch.nn.Linear(4, 5)

    def forward(self, x_BLI: Tensor, condition_BI: Tensor) -> Tensor:
        return torch.nn.functional.gelu(self.tokens(x_BLI)) * self.modulation(condition_BI)[:, None]


@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("meta_rank", [3, None])
def test_torch_compile_and_new_routes(meta_rank: int | None) -> None:
    torch.manual_seed(0)
    toy, x, condition = Toy(), torch.randn(3, 7, 6), torch.randn(3, 4)
    layers = {name: module for name, module in toy.named_modules() if isinstance(module, torch.nn.Linear)}
    bank = AdapterBank(layer_shapes(layers), identities=IDENTITIES, rank=1, meta_rank=meta_rank, seed=0)
    shake(bank)
    inject(toy, bank)
    compiled, routes = torch.compile(toy, fullgraph=True), ([0, 2, 1], [3, 3, 0])

    def outputs(model: torch.nn.Module) -> list[tuple[Tensor, Tensor]]:
        results = []
        for route in routes:
            bank.zero_grad()
            bank.set_route(torch.tensor(route))
            y = model(x, condition)
            y.square().sum().backward()
            results.append((y.detach(), bank.rows.grad.to_dense()))
        return results

    eager = outputs(toy)
    torch.testing.assert_close(eager, outputs(compiled), rtol=1e-4, atol=1e-5)
    assert not torch.equal(eager[0][0], eager[1][0])
    with torch.compiler.set_stance("fail_on_recompile"):
        outputs(compiled)


def test_warm_up_leaves_meta_down_and_its_state_alone(tiny_backbone: DiffusersBackbone) -> None:
    world = make_world(tiny_backbone, rank=1, meta_rank=META_RANK)
    optimizer = BankAdamW(world.bank, lr=0.01)
    before = {name: parameter.detach().clone() for name, parameter in world.bank.meta_down.items()}
    world.bank.train_meta_down = False
    for _ in range(3):
        _, rows, meta = world.gradients()
        assert all(grad is None for grad in meta.values()) and rows.any()
        clip_rows_(world.bank, max_norm=1.0)
        optimizer.step()
    for name, parameter in world.bank.meta_down.items():
        assert torch.equal(parameter, before[name]) and parameter not in optimizer.state
    world.bank.train_meta_down = True
    world.gradients()
    optimizer.step()
    for name, parameter in world.bank.meta_down.items():
        assert not torch.equal(parameter, before[name]) and optimizer.state[parameter]["step"] == 1


def test_a_step_moves_the_present_alone(world: World) -> None:
    optimizer = BankAdamW(world.bank, lr=0.01)
    world.bank.rows.grad = torch.sparse_coo_tensor(
        torch.tensor([[0, 1, 2, 3]]), torch.ones_like(world.bank.rows), world.bank.rows.shape, check_invariants=True
    )
    optimizer.step()
    state = optimizer.state[world.bank.rows]
    before = [tensor[3].clone() for tensor in (world.bank.rows.detach(), *state.values())]
    moved = world.bank.rows.detach().clone()
    for _ in range(2):
        world.gradients()
        optimizer.step()
    after = [tensor[3] for tensor in (world.bank.rows.detach(), *state.values())]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert all(not torch.equal(moved[row], world.bank.rows[row]) for row in set(ROUTE))


@pytest.mark.parametrize("identity", ["bob", "eve"])
def test_the_collapsed_lora_equals_the_live_adapter(world: World, identity: str) -> None:
    shake(world.bank)
    row = world.bank.row_of(identity)
    with torch.no_grad():
        world.bank.set_route(torch.full((len(ROUTE),), row))
        live = world.predict()
        lora = world.bank.collapsed(identity)
        eject(world.injection)
        bare = world.predict()
        plain = AdapterBank(world.bank.layers, identities=["x", "y"], rank=world.bank.rank + 1, meta_rank=None, seed=0)
        plain.load_lora("y", lora)
        inject(world.backbone.denoiser, plain)
        plain.set_route(torch.ones(len(ROUTE), dtype=torch.int64))
        torch.testing.assert_close(world.predict(), live, rtol=1e-4, atol=1e-5)
    assert (live - bare).abs().max() > 0.01


def test_the_exported_file_in_the_stock_pipeline_gives_the_live_adapter_s_image(world: World, tmp_path) -> None:
    shake(world.bank)
    pipeline = world.backbone.pipeline()
    pipeline.set_progress_bar_config(disable=True)

    def image() -> Tensor:
        return pipeline(
            "a photo of woman",
            height=16,
            width=24,
            num_inference_steps=3,
            max_sequence_length=8,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).images

    bare = image()
    world.bank.set_route(torch.tensor([2]))
    live = image()
    world.bank.clear_route()
    eject(world.injection)
    save_lora(tmp_path / "eve.safetensors", world.bank.collapsed("eve"))
    pipeline.load_lora_weights(tmp_path, weight_name="eve.safetensors")
    loaded = image()
    pipeline.unload_lora_weights()
    assert torch.equal(image(), bare)
    torch.testing.assert_close(loaded, live, rtol=0, atol=1e-5)
    assert (live - bare).abs().max() > 0.01
    assert set(load_lora(tmp_path / "eve.safetensors").down) == set(world.backbone.target_layers())


def test_layers_without_a_match_are_listed(tiny_backbone: DiffusersBackbone) -> None:
    shapes = layer_shapes(tiny_backbone.target_layers())
    first = next(iter(shapes))
    for wrong in (
        {**shapes, "transformer_blocks.9.attn.to_q": LayerShape(32, 32)},
        {**shapes, first: LayerShape(32, 33)},
        {**shapes, "transformer_blocks.0.attn": LayerShape(32, 32)},
    ):
        bank = AdapterBank(wrong, identities=["a"], rank=1, meta_rank=2, seed=0)
        with pytest.raises(
            UserError, match=r"1 of 2\d adapter layers have no match in the model: \w*transformer_blocks"
        ):
            inject(tiny_backbone.denoiser, bank)
        assert not any("forward" in vars(module) for module in tiny_backbone.denoiser.modules())
