"""LoRA files of other programs: Kohya's names and fused modules, exact both ways, and as stock diffusers reads them."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from tiny_models import TEXT_TOKENS, make_tiny_flux
from torch import Tensor

from metalora.adapters.artifacts import load_lora, save_lora
from metalora.adapters.bank import AdapterBank
from metalora.adapters.inject import eject, inject
from metalora.adapters.layouts import from_tensors, to_kohya
from metalora.backbones.flux import block_linears, load_flux
from metalora.core.contracts import LoraFile
from metalora.core.errors import UserError

WIDTH = 32


def random_lora(shapes: dict[str, tuple[int, int]], *, rank: int = 2, seed: int = 0) -> LoraFile:
    draw = torch.Generator().manual_seed(seed)
    down = {name: torch.randn(rank, width, generator=draw) for name, (width, _) in shapes.items()}
    up = {name: torch.randn(width, rank, generator=draw) for name, (_, width) in shapes.items()}
    return LoraFile(down, up, {"identity": "eve"})


def flux_shapes(**config: int) -> dict[str, tuple[int, int]]:
    """Layer -> (in, out) of a FLUX of width 32 and any depth."""
    with torch.device("meta"):
        model = FluxTransformer2DModel(
            in_channels=16, attention_head_dim=16, num_attention_heads=2, axes_dims_rope=(4, 6, 6), **config
        )
    return {name: (layer.in_features, layer.out_features) for name, layer in block_linears(model).items()}


@pytest.fixture
def lora() -> LoraFile:
    return random_lora(flux_shapes(num_layers=2, num_single_layers=2))


def update(lora: LoraFile, name: str) -> Tensor:
    return lora.up[name].double() @ lora.down[name].double()


def assert_same_updates(a: LoraFile, b: LoraFile) -> None:
    assert set(a.down) == set(b.down) == set(a.up) == set(b.up)
    for name in a.down:
        torch.testing.assert_close(update(a, name), update(b, name), rtol=1e-6, atol=1e-6)


def test_kohya_names_of_the_full_model() -> None:
    """Every Linear inside the blocks of the original FLUX code, dots as underscores, behind `lora_unet_`."""
    stream = ("mod.lin", "attn.qkv", "attn.proj", "mlp.0", "mlp.2")
    modules = [f"double_blocks.{n}.{s}_{part}" for n, s, part in product(range(19), ("img", "txt"), stream)]
    modules += [f"single_blocks.{n}.{part}" for n, part in product(range(38), ("linear1", "linear2", "modulation.lin"))]
    parts = ("lora_down.weight", "lora_up.weight", "alpha")
    expected = {f"lora_unet_{module.replace('.', '_')}.{part}" for module, part in product(modules, parts)}
    whole = random_lora(flux_shapes(num_layers=19, num_single_layers=38), rank=1)
    assert len(whole.down) == 494 and len(expected) == 3 * 304
    assert set(to_kohya(whole)) == expected


def test_fused_modules_are_exact_and_their_alpha_is_their_rank(lora: LoraFile) -> None:
    tensors = to_kohya(lora)
    for block, parts in (
        ("double_blocks_1_img_attn_qkv", ("attn.to_q", "attn.to_k", "attn.to_v")),
        ("double_blocks_1_txt_attn_qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
        ("single_blocks_1_linear1", ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),
    ):
        down, up = (tensors[f"lora_unet_{block}.{word}.weight"] for word in ("lora_down", "lora_up"))
        assert float(tensors[f"lora_unet_{block}.alpha"]) == len(down) == up.shape[1] == 2 * len(parts)
        stack = "transformer_blocks.1" if block.startswith("double") else "single_transformer_blocks.1"
        whole = torch.cat([update(lora, f"{stack}.{part}") for part in parts])
        torch.testing.assert_close(up.double() @ down.double(), whole, rtol=1e-6, atol=1e-6)
    assert float(tensors["lora_unet_single_blocks_0_linear2.alpha"]) == 2


def test_both_layouts_come_back_bit_for_bit(lora: LoraFile, tmp_path: Path) -> None:
    for layout in ("diffusers", "kohya"):
        path = tmp_path / f"{layout}.safetensors"
        save_lora(path, lora, layout=layout)
        back = load_lora(path)
        assert set(back.down) == set(lora.down) and back.metadata["identity"] == "eve" and back.path == path
        for name in lora.down:
            assert torch.equal(back.down[name], lora.down[name]) and torch.equal(back.up[name], lora.up[name])


def test_a_fresh_lora_keeps_its_rank(lora: LoraFile) -> None:
    """Zero Ups tell nothing about blocks."""
    fresh = replace(lora, up={name: torch.zeros_like(up) for name, up in lora.up.items()})
    back = from_tensors(to_kohya(fresh), {}, where="a file")
    assert {len(down) for down in back.down.values()} == {2}
    assert_same_updates(back, fresh)


def test_parts_of_different_ranks_are_fused_exactly(lora: LoraFile) -> None:
    name = "single_transformer_blocks.0.attn.to_k"
    lora.down[name], lora.up[name] = lora.down[name][:1], lora.up[name][:, :1]
    assert_same_updates(from_tensors(to_kohya(lora), {}, where="a file"), lora)


def test_somebody_elses_fused_up_is_dense(lora: LoraFile, tmp_path: Path) -> None:
    """Trained on the fused module: every part has the whole rank, and alpha scales."""
    tensors = to_kohya(lora)
    start = "lora_unet_single_blocks_0_linear1"
    draw = torch.Generator().manual_seed(1)
    down, up = torch.randn(8, WIDTH, generator=draw), torch.randn(3 * WIDTH + 4 * WIDTH, 8, generator=draw)
    tensors |= {f"{start}.lora_down.weight": down, f"{start}.lora_up.weight": up, f"{start}.alpha": torch.tensor(2.0)}
    back = from_tensors(tensors, {}, where="a file")
    for layout in ("diffusers", "kohya"):  # as it is, in its own precision
        save_lora(tmp_path / layout, back, layout=layout)
        assert_same_updates(load_lora(tmp_path / layout), back)
    whole = torch.cat(
        [update(back, f"single_transformer_blocks.0.{p}") for p in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
    )
    torch.testing.assert_close(whole, up.double() @ down.double() * 2 / 8, rtol=1e-5, atol=1e-6)


def test_alpha_of_diffusers_files(lora: LoraFile, tmp_path: Path) -> None:
    """PEFT's configuration in the header, as diffusers itself leaves it; a pattern names exceptions."""
    save_lora(tmp_path / "lora.safetensors", lora)
    tensors = load_file(tmp_path / "lora.safetensors")
    special = "transformer_blocks.0.attn.to_q"
    config = {"transformer.r": 2, "transformer.lora_alpha": 4, "transformer.alpha_pattern": {special: 1}}
    back = from_tensors(tensors, {"lora_adapter_metadata": json.dumps(config)}, where="a file")
    assert not back.metadata  # folded in, and not to be applied again
    for name in lora.down:
        factor = 0.5 if name == special else 2.0
        torch.testing.assert_close(update(back, name), factor * update(lora, name), rtol=1e-6, atol=1e-6)
    back = from_tensors({**tensors, f"transformer.{special}.alpha": torch.tensor(6.0)}, {}, where="a file")
    torch.testing.assert_close(update(back, special), 3 * update(lora, special), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("lora_unet_double_blocks_0_img_mlp_0.lora_up.weight"), "half a pair.*img_mlp_0"),
        (lambda t: t.update({"lora_te1_text.lora_down.weight": torch.zeros(1)}), "half a pair.*lora_te1_text"),
        (lambda t: t.update({"strange": torch.zeros(1)}), "strange"),
        (lambda t: t.clear(), "no tensor"),
        (
            lambda t: t.update({"lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": torch.zeros(100, 6)}),
            "img_attn_qkv with 100 outputs",
        ),
        (
            lambda t: t.update({"lora_unet_double_blocks_0_img_mlp_0.lora_up.weight": torch.zeros(128, 7)}),
            "img_mlp_0 of rank 2 and 7",
        ),
    ],
)
def test_files_that_are_no_lora(lora: LoraFile, change, message: str) -> None:
    tensors = to_kohya(lora)
    change(tensors)
    with pytest.raises(UserError, match=message):
        from_tensors(tensors, {}, where="a file")


def test_a_lora_of_another_model_is_refused(lora: LoraFile, tmp_path: Path) -> None:
    words = ("lora_down", "lora_up")
    tensors = {f"lora_unet_input_blocks_4_1_proj_in.{word}.weight": torch.zeros(2, 2) for word in words}
    save_file(tensors, tmp_path / "sd.safetensors")
    with pytest.raises(UserError, match=r"sd.safetensors is no LoRA that can be read.*got lora_unet_input_blocks_4"):
        load_lora(tmp_path / "sd.safetensors")
    with pytest.raises(UserError, match=r"Kohya layout has no names for this.*1 others: blocks.0.first"):
        to_kohya(LoraFile({"blocks.0.first": torch.zeros(1, 2)}, {"blocks.0.first": torch.zeros(2, 1)}, {}))
    del lora.down["transformer_blocks.0.attn.to_k"]
    with pytest.raises(UserError, match=r"double_blocks_0_img_attn_qkv cannot be fused.*got no .*to_k"):
        to_kohya(lora)


@pytest.mark.slow
def test_stock_diffusers_reads_both_files_of_a_trained_adapter(tmp_path: Path) -> None:
    """At FLUX's own width, which diffusers' reader of Kohya files takes for granted; one block of each kind."""
    wide = {"attention_head_dim": 128, "num_attention_heads": 24, "axes_dims_rope": (16, 56, 56)}
    make_tiny_flux(tmp_path / "flux", **wide)
    backbone = load_flux(tmp_path / "flux", name="wide", max_text_tokens=TEXT_TOKENS)
    bank = AdapterBank(backbone.layer_shapes, identities=["eve"], rank=2, meta_rank=4, seed=0)
    with torch.no_grad():
        bank.rows.normal_(generator=torch.Generator().manual_seed(0))
    lora = bank.collapsed("eve")
    for layout in ("diffusers", "kohya"):
        save_lora(tmp_path / f"{layout}.safetensors", lora, layout=layout)

    def image(pipe: FluxPipeline) -> Tensor:
        return pipe(
            "a photo of a man",
            generator=torch.Generator().manual_seed(0),
            num_inference_steps=2,
            height=16,
            width=16,
            max_sequence_length=TEXT_TOKENS,
            output_type="latent",
        ).images

    pipe = backbone.pipeline()
    base = image(pipe)
    injection = inject(backbone.denoiser, bank)
    bank.set_route(torch.tensor([0]))
    live = image(pipe)
    bank.clear_route()
    eject(injection)
    assert (live - base).norm() > 0.05 * base.norm()
    for layout in ("diffusers", "kohya"):
        pipe.load_lora_weights(str(tmp_path), weight_name=f"{layout}.safetensors", adapter_name=layout)
        modules = dict(pipe.transformer.named_modules())
        assert_updates(modules, lora, layout, factor=1.0)
        torch.testing.assert_close(image(pipe), live, rtol=1e-3, atol=1e-3)
        pipe.set_adapters(layout, 0.5)
        assert_updates(modules, lora, layout, factor=0.5)
        pipe.unload_lora_weights()


def assert_updates(modules: dict[str, Any], lora: LoraFile, adapter: str, *, factor: float) -> None:
    """PEFT's weight updates do to a random vector what the LoRA's do, times a factor."""
    for name, down_SI in lora.down.items():
        probe_I = torch.randn(down_SI.shape[1], generator=torch.Generator().manual_seed(0))
        layer = modules[name]
        inner_R = layer.lora_A[adapter].weight @ probe_I
        got_O = layer.scaling[adapter] * (layer.lora_B[adapter].weight @ inner_R)
        torch.testing.assert_close(got_O, factor * (lora.up[name] @ (down_SI @ probe_I)), rtol=1e-4, atol=1e-3)
