"""Saving memory changes no number, quantization apart; a quantized base is made once and read again."""

import gc
import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import make_tiny_flux, make_tiny_sd, make_tiny_sd3
from torch import Tensor, nn

from metalora.adapters.bank import AdapterBank
from metalora.adapters.inject import eject, inject
from metalora.backbones.backbone import DiffusersBackbone
from metalora.backbones.blocks import compile_repeated, repeated_blocks
from metalora.backbones.flux import load_flux
from metalora.backbones.quantization import quantized_bytes
from metalora.backbones.sd3 import load_sd3
from metalora.backbones.unet import load_sd15, load_sdxl
from metalora.core.bits import dense, is_quantized
from metalora.core.contracts import MemoryUse, TextEmbedding
from metalora.core.errors import UserError

ROUTE = torch.tensor([1, 0])


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny FLUX of two double and three single blocks; its width is a multiple of nf4's 64."""
    folder = tmp_path_factory.mktemp("flux")
    make_tiny_flux(folder, num_layers=2, num_single_layers=3, num_attention_heads=4)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, flux: Path) -> dict[str, Path]:
    """One small pipeline of every family."""
    made = {name: tmp_path_factory.mktemp(name) for name in ("sd15", "sdxl", "sd35")}
    make_tiny_sd(made["sd15"], xl=False)
    make_tiny_sd(made["sdxl"], xl=True)
    make_tiny_sd3(made["sd35"])
    return made | {"flux_dev": flux}


def opened(name: str, folder: Path, **options: Any) -> DiffusersBackbone:
    load = {"flux_dev": load_flux, "sd15": load_sd15, "sdxl": load_sdxl, "sd35": load_sd3}[name]
    return load(folder, name=name, **options)


def step(backbone: DiffusersBackbone, text: TextEmbedding, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Prediction and the rows' gradient of one forward and backward through shaken adapters."""
    draw = torch.Generator().manual_seed(seed)
    bank = AdapterBank(backbone.layer_shapes, identities=["a", "b"], rank=1, meta_rank=4, seed=0)
    with torch.no_grad():
        bank.rows.add_(torch.randn(bank.rows.shape, generator=draw) / 20)
    injection = inject(backbone.denoiser, bank)
    bank.set_route(ROUTE)
    channels = 16 if backbone.name == "sd35" else 4
    x_t_BCHW = torch.randn(2, channels, 8, 8, generator=draw)
    prediction = backbone.predict(x_t_BCHW, t_B=torch.tensor([0.3, 0.8]), text=text, guidance=1.0)
    prediction.float().square().sum().backward()
    eject(injection)
    assert bank.rows.grad is not None
    return prediction.detach(), bank.rows.grad.to_dense()


def embedded(backbone: DiffusersBackbone) -> TextEmbedding:
    return backbone.encode_text(["a photo of a man", "a photo of a woman"])


@pytest.mark.parametrize("name", ["flux_dev", "sd15", "sdxl", "sd35"])
@pytest.mark.parametrize("memory", [MemoryUse(checkpointing="some"), MemoryUse(checkpointing="all")], ids=str)
def test_checkpointing_changes_no_number(folders: dict[str, Path], name: str, memory: MemoryUse) -> None:
    plain, saving = opened(name, folders[name]), opened(name, folders[name], memory=memory)
    text = embedded(plain)
    runs = {"plain": 0, "saving": 0}
    for label, backbone in (("plain", plain), ("saving", saving)):
        for block in repeated_blocks(backbone.denoiser):

            def count(*_: Any, label: str = label) -> None:
                runs[label] += 1

            block.register_forward_pre_hook(count)
    for one, other in zip(step(plain, text), step(saving, text), strict=True):
        assert torch.equal(one, other)
    if name == "flux_dev":
        assert runs == {"plain": 5, "saving": 5 + (3 if memory.checkpointing == "some" else 5)}
    else:
        assert runs["saving"] > runs["plain"]


class Lost(nn.Parameter):
    """A parameter on the CPU that nothing may compute with."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in ("linear", "mm", "addmm", "bmm", "matmul", "rms_norm", "layer_norm"):
            raise AssertionError(f"{func.__name__} with a weight that waits on the CPU")
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("name", ["flux_dev", "sdxl"])
def test_offloaded_weights_come_for_their_block_alone(
    folders: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is one device here, so what waits is made unusable: only the copies that came may be computed with."""
    from metalora.backbones import blocks

    plain = opened(name, folders[name])
    text = embedded(plain)

    def waiting(parameter: nn.Parameter, device: torch.device) -> nn.Parameter:
        return Lost(parameter.detach(), requires_grad=False)

    def came(parameter: nn.Parameter, device: torch.device) -> nn.Parameter:
        return nn.Parameter(parameter.detach().as_subclass(Tensor).clone(), requires_grad=False)

    monkeypatch.setattr(blocks, "_pinned", waiting)
    monkeypatch.setattr(blocks, "_moved", came)
    saving = opened(name, folders[name], memory=MemoryUse(checkpointing="all", offload=True))
    blocks_of = repeated_blocks(saving.denoiser)
    at_home = [type(parameter) for block in blocks_of for parameter in block.parameters()]
    assert set(at_home) == {Lost}
    for one, other in zip(step(plain, text), step(saving, text), strict=True):
        assert torch.equal(one, other)
    assert [type(parameter) for block in blocks_of for parameter in block.parameters()] == at_home
    with torch.no_grad():
        for backbone in (plain, saving):  # drawing comes without checkpointing
            backbone.predict(torch.zeros(2, 4, 8, 8), t_B=torch.tensor([0.3, 0.8]), text=text, guidance=1.0)


@pytest.mark.parametrize("kind", [None, "float8"])
def test_a_block_that_has_run_leaves_nothing_on_the_device(
    flux: Path, tmp_path: Path, kind: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither after its forward, whose activations are dropped, nor when the step is over."""
    from metalora.backbones import blocks

    def copied(parameter: nn.Parameter, device: torch.device) -> nn.Parameter:  # as from one device to another
        return nn.Parameter(parameter.detach().clone(), requires_grad=False)

    monkeypatch.setattr(blocks, "_moved", copied)
    memory = MemoryUse(kind, "all", True)
    backbone = load_flux(flux, name="tiny", memory=memory, quantized=tmp_path, max_text_tokens=8)
    text, came = embedded(backbone), []
    bank = AdapterBank(backbone.layer_shapes, identities=["a", "b"], rank=1, meta_rank=4, seed=0)
    inject(backbone.denoiser, bank)
    for block in repeated_blocks(backbone.denoiser):

        def look(block: nn.Module, *_: Any) -> None:
            came.extend(weakref.ref(parameter) for parameter in block.parameters())

        block.register_forward_pre_hook(look)
    bank.set_route(ROUTE)
    x_t_BCHW = torch.randn(2, 4, 8, 8)
    prediction = backbone.predict(x_t_BCHW, t_B=torch.tensor([0.3, 0.8]), text=text, guidance=1.0)
    gc.collect()
    assert len(came) > 50 and not [it for it in came if it() is not None]
    prediction.sum().backward()
    gc.collect()
    assert not [it for it in came if it() is not None]


def bases(folder: Path) -> list[Path]:
    """Every kept base; leases have hidden folders beside them."""
    return [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]


def quantized(flux: Path, root: Path, kind: str, **options: Any) -> DiffusersBackbone:
    memory = MemoryUse(quantization=kind, checkpointing=options.pop("checkpointing", "none"))
    return load_flux(flux, name="tiny", memory=memory, quantized=root, max_text_tokens=8, **options)


@pytest.fixture
def nf4_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes computes on the CPU as well; only diffusers' check, and ours, ask for a GPU."""
    from diffusers.quantizers.bitsandbytes.bnb_quantizer import BnB4BitDiffusersQuantizer

    from metalora.backbones import backbone, quantization

    monkeypatch.setattr(BnB4BitDiffusersQuantizer, "validate_environment", lambda *_, **__: None)
    for module in (backbone, quantization):
        monkeypatch.setattr(module, "check_quantization", lambda *_, **__: None)


@pytest.fixture(params=["float8", "int8", "nf4"])
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "nf4":
        request.getfixturevalue("nf4_on_cpu")
    yield request.param


def test_a_quantized_base_is_near_the_plain_one(flux: Path, tmp_path: Path, kind: str) -> None:
    plain, small = load_flux(flux, name="tiny", max_text_tokens=8), quantized(flux, tmp_path, kind)
    for name, layer in small.target_layers().items():
        assert is_quantized(layer.weight), name
        assert not layer.weight.requires_grad
        exact = plain.target_layers()[name].weight
        numbers = dense(layer.weight, dtype=torch.float32)
        assert numbers.shape == exact.shape
        error = (numbers - exact).abs().max() / exact.abs().max()
        assert 0 < error < {"float8": 0.07, "int8": 0.01, "nf4": 0.2}[kind], name
    others = (small.denoiser.x_embedder, small.denoiser.norm_out.linear, small.denoiser.proj_out)
    assert not any(is_quantized(layer.weight) for layer in others)
    assert torch.equal(small.denoiser.proj_out.weight, plain.denoiser.proj_out.weight)
    text = embedded(plain)
    (near, near_grad), (exact, exact_grad) = step(small, text), step(plain, text)
    cosine = torch.nn.functional.cosine_similarity
    least = {"float8": 0.999, "int8": 0.9999, "nf4": 0.99}[kind]
    assert least < cosine(near.flatten(), exact.flatten(), dim=0) < 1
    assert cosine(near_grad.flatten(), exact_grad.flatten(), dim=0) > least - 0.05


def test_a_quantized_base_is_kept_and_read_again(
    flux: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = quantized(flux, tmp_path, kind)
    text = embedded(first)
    expected = step(first, text)
    (folder,) = bases(tmp_path)
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    saved = json.loads((folder / "config.json").read_text())
    assert saved["quantization_config"]["quant_method"] == ("bitsandbytes" if kind == "nf4" else "torchao")
    again = quantized(flux, tmp_path, kind)
    monkeypatch.setattr(
        type(first.denoiser), "save_pretrained", lambda *_, **__: pytest.fail("it was quantized once more")
    )
    for one, other in zip(step(again, text), expected, strict=True):
        assert torch.equal(one, other)


def test_a_quantized_layer_keeps_no_numbers_for_backward(flux: Path, tmp_path: Path, kind: str) -> None:
    """Otherwise a base in eight bits would need the memory of one in sixteen and more."""
    backbone = quantized(flux, tmp_path, kind)
    bank = AdapterBank(backbone.layer_shapes, identities=["a"], rank=1, meta_rank=4, seed=0)
    name, layer = next((n, it) for n, it in backbone.target_layers().items() if n.endswith("ff.net.0.proj"))
    inject(backbone.denoiser, bank)
    for route in (True, False):
        bank.set_route(torch.tensor([0])) if route else bank.clear_route()
        for tokens in (9, 1):  # more than the rank, and not
            x = torch.randn(1, tokens, layer.in_features, requires_grad=True)
            kept: list[Tensor] = []
            with torch.autograd.graph.saved_tensors_hooks(lambda it, kept=kept: kept.append(it) or it, lambda it: it):
                y = layer(x)
            size = layer.in_features * layer.out_features
            assert all(tensor.numel() < size or is_quantized(tensor) for tensor in kept), (name, route, tokens)
            (grad,) = torch.autograd.grad(y.sum(), x)
            weight = dense(layer.weight, dtype=torch.float32)
            down_1I, up_1O = bank._of_row(0)[name][0], bank._of_row(0)[name][1].mT
            update = (up_1O.sum() * down_1I @ bank.meta_down_of(name)) if route else torch.zeros(1)
            torch.testing.assert_close(grad, (weight.sum(0) + update.detach()).expand_as(grad), rtol=1e-4, atol=1e-5)


def test_a_fresh_adapter_changes_no_bit_of_a_quantized_base(flux: Path, tmp_path: Path, kind: str) -> None:
    backbone = quantized(flux, tmp_path, kind)
    text, x = embedded(backbone), torch.randn(2, 4, 8, 8)
    bank = AdapterBank(backbone.layer_shapes, identities=["a", "b"], rank=1, meta_rank=4, seed=0)
    inject(backbone.denoiser, bank)
    outputs = []
    for fresh in (True, False):
        bank.set_route(ROUTE) if fresh else bank.clear_route()
        outputs.append(backbone.predict(x, t_B=torch.tensor([0.3, 0.8]), text=text, guidance=1.0))
    assert torch.equal(*outputs)


def test_a_moved_weight_leaves_its_scales_where_they_are(flux: Path, tmp_path: Path, kind: str) -> None:
    from metalora.backbones.blocks import _moved

    weight = next(iter(quantized(flux, tmp_path, kind).target_layers().values())).weight
    other = _moved(weight, torch.device("cpu"))
    assert type(other) is type(weight) and not other.requires_grad
    assert torch.equal(dense(other, dtype=torch.float32), dense(weight, dtype=torch.float32))
    if kind == "nf4":
        assert other.quant_state is not weight.quant_state


def test_checkpointing_works_on_a_quantized_base(flux: Path, tmp_path: Path, kind: str) -> None:
    plain = quantized(flux, tmp_path, kind)
    text = embedded(plain)
    for one, other in zip(
        step(plain, text), step(quantized(flux, tmp_path, kind, checkpointing="all"), text), strict=True
    ):
        assert torch.equal(one, other)


def test_a_weight_takes_what_is_counted_for_it(flux: Path, tmp_path: Path, kind: str) -> None:
    backbone = quantized(flux, tmp_path, kind)
    for layer in backbone.target_layers().values():
        shape, weight = (layer.out_features, layer.in_features), layer.weight
        if kind == "nf4":
            taken = weight.data.nbytes + weight.quant_state.absmax.nbytes
        else:
            taken = sum(getattr(weight, part).nbytes for part in weight.tensor_data_names)
        assert taken == quantized_bytes(shape, kind=kind, dtype=torch.float32)


def test_quantizations_that_cannot_be_had(flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no such quantization; .*nf4 or null; got int3; key: memory.quantization"):
        quantized(flux, tmp_path, "int3")
    with pytest.raises(UserError, match=r"nf4 weights need a GPU; .*float8 or int8"):
        quantized(flux, tmp_path, "nf4")
    from metalora.backbones import quantization

    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"int8 weights need torchao; expected pip install torchao"):
        quantized(flux, tmp_path, "int8")


def test_a_half_written_quantized_base_is_made_again(
    flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = quantized(flux, tmp_path, "int8")
    with monkeypatch.context() as patch:
        model = backbone.family.model
        save = model.save_pretrained

        def cut(self: Any, folder: Path, **options: Any) -> None:
            save(self, folder, **options)
            raise KeyboardInterrupt

        patch.setattr(model, "save_pretrained", cut)
        with pytest.raises(KeyboardInterrupt):
            backbone.denoiser  # noqa: B018
    assert bases(tmp_path) == []
    expected = step(quantized(flux, tmp_path, "int8"), embedded(backbone))
    (folder,) = bases(tmp_path)
    (weights,) = folder.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1000])  # a disk that lost something
    for one, other in zip(step(quantized(flux, tmp_path, "int8"), embedded(backbone)), expected, strict=True):
        assert torch.equal(one, other)


def test_attention_backends(flux: Path) -> None:
    plain = load_flux(flux, name="tiny")
    text = embedded(plain)
    expected = step(plain, text)
    for name in ("native", "best", "_native_math"):
        backbone = load_flux(flux, name="tiny", attention=name)
        for one, other in zip(step(backbone, text), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert torch.equal(step(load_flux(flux, name="tiny"), text)[0], expected[0])  # one model's choice is no other's
    for name in ("flash", "no_such"):
        with pytest.raises(UserError, match=rf"attention backend cannot be used; .*got {name}: .*backbone.attention"):
            load_flux(flux, name="tiny", attention=name).denoiser  # noqa: B018


def test_compiled_blocks_are_the_same_function(tiny_flux_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph per kind of block, no break in any of them; what a graph becomes on a device is torch's affair."""
    from metalora.backbones import backbone as module

    monkeypatch.setattr(module, "compile_repeated", lambda denoiser: compile_repeated(denoiser, backend="eager"))
    plain, compiled = (load_flux(tiny_flux_dir, name="tiny", compile_blocks=choice) for choice in (False, True))
    text = embedded(plain)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for one, other in zip(step(compiled, text), step(plain, text), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]


def test_repeated_blocks(folders: dict[str, Path]) -> None:
    counts = {name: len(repeated_blocks(opened(name, folder).denoiser)) for name, folder in folders.items()}
    assert counts["flux_dev"] == 5 and min(counts.values()) >= 1
