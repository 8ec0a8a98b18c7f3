"""Other ranks, strengths and precisions of a LoRA, and a LoRA inside the base model's weights."""

from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from tiny_models import TEXT_TOKENS, make_tiny_flux
from torch import Tensor

from metalora.adapters.artifacts import save_lora
from metalora.adapters.transform import cast, filled, merge_into, ranks, resized, scaled
from metalora.backbones.flux import load_flux
from metalora.core.contracts import LoraFile
from metalora.core.errors import UserError
from metalora.core.lora import truncate


def random_lora(folder: Path, *, rank: int, seed: int = 0, scale: float = 0.2) -> LoraFile:
    draw = torch.Generator().manual_seed(seed)
    shapes = load_flux(folder, name="tiny", max_text_tokens=TEXT_TOKENS).layer_shapes
    return LoraFile(
        {name: scale * torch.randn(rank, shape.in_features, generator=draw) for name, shape in shapes.items()},
        {name: scale * torch.randn(shape.out_features, rank, generator=draw) for name, shape in shapes.items()},
        {},
    )


def update(lora: LoraFile, name: str) -> Tensor:
    return lora.up[name].double() @ lora.down[name].double()


@pytest.mark.parametrize("rank", [1, 3, 5, 8])
def test_truncation_is_the_products_own_svd(rank: int) -> None:
    draw = torch.Generator().manual_seed(0)
    down, up = torch.randn(5, 9, generator=draw), torch.randn(7, 5, generator=draw)
    made = truncate(down, up, rank=rank)
    assert made.down_SI.shape == (rank, 9) and made.up_OS.shape == (7, rank)
    u, s, v = torch.linalg.svd(up @ down)
    nearest = u[:, :rank] @ torch.diag_embed(s[:rank]) @ v[: min(rank, 7)]
    torch.testing.assert_close(made.up_OS @ made.down_SI, nearest, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.tensor(made.kept), (s[:rank].square().sum() / s.square().sum()).cpu())
    torch.testing.assert_close(made.up_OS.norm(dim=0), made.down_SI.norm(dim=1), rtol=1e-4, atol=1e-5)


def test_nothing_truncated_is_nothing() -> None:
    made = truncate(torch.randn(2, 4), torch.zeros(3, 2), rank=1)
    assert not made.up_OS.any() and made.kept == 1.0


def test_resizing_tells_how_much_is_left(tiny_flux_dir: Path) -> None:
    lora = random_lora(tiny_flux_dir, rank=4)
    made = resized(lora, 2)
    assert ranks(made.lora) == [2] and ranks(lora) == [4]
    whole = sum(float(update(lora, name).square().sum()) for name in lora.down)
    lost = sum(float((update(lora, name) - update(made.lora, name)).square().sum()) for name in lora.down)
    assert made.kept == pytest.approx(1 - lost / whole, abs=1e-6) and 0.5 < made.kept < 1
    more = resized(lora, 6)
    assert more.kept == pytest.approx(1) and ranks(more.lora) == [6]
    for name in lora.down:
        torch.testing.assert_close(update(more.lora, name), update(lora, name), rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match="no such rank; expected 1 or more; got 0; key: resize"):
        resized(lora, 0)


def test_half_the_strength_is_half_the_update(tiny_flux_dir: Path) -> None:
    lora = cast(random_lora(tiny_flux_dir, rank=2), torch.bfloat16)
    half = scaled(lora, 0.5)
    assert scaled(lora, 1.0) is lora
    for name in lora.down:
        assert torch.equal(update(half, name), update(lora, name) / 2)
        assert lora.down[name].dtype == torch.bfloat16 and half.up[name].dtype == torch.float32


def test_zeros_fill_what_a_lora_has_nothing_for(tiny_flux_dir: Path) -> None:
    shapes = load_flux(tiny_flux_dir, name="tiny", max_text_tokens=TEXT_TOKENS).layer_shapes
    lora, name = random_lora(tiny_flux_dir, rank=3), "transformer_blocks.0.attn.to_q"
    partial = LoraFile({name: lora.down[name][:2]}, {name: lora.up[name][:, :2]}, {})
    partial.down["transformer_blocks.0.attn.to_k"] = lora.down["transformer_blocks.0.attn.to_k"]
    partial.up["transformer_blocks.0.attn.to_k"] = lora.up["transformer_blocks.0.attn.to_k"]
    whole = filled(partial, shapes)
    assert ranks(whole) == [3] and set(whole.down) == set(shapes)
    for layer, shape in shapes.items():
        assert (whole.up[layer] @ whole.down[layer]).shape == (shape.out_features, shape.in_features)
        expected = update(partial, layer) if layer in partial.down else torch.zeros(())
        assert torch.equal(update(whole, layer), expected.expand(shape.out_features, shape.in_features))


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


def test_the_merged_model_draws_what_base_and_lora_draw(tmp_path: Path) -> None:
    base = tmp_path / "base"
    make_tiny_flux(base, max_shard_size="60KB")
    assert (base / "transformer/diffusion_pytorch_model.safetensors.index.json").is_file()
    lora = random_lora(base, rank=2, scale=0.4)
    save_lora(tmp_path / "lora.safetensors", lora)
    pipe = FluxPipeline.from_pretrained(base)
    pipe.set_progress_bar_config(disable=True)
    untouched = image(pipe)
    pipe.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    with_lora = image(pipe)
    before = {path: path.read_bytes() for path in base.rglob("*") if path.is_file()}
    assert merge_into(base, lora, tmp_path / "merged") == len(lora.down) == 20
    assert {path: path.read_bytes() for path in base.rglob("*") if path.is_file()} == before
    merged = image(FluxPipeline.from_pretrained(tmp_path / "merged"))
    torch.testing.assert_close(merged, with_lora, rtol=1e-4, atol=1e-4)
    assert (merged - untouched).norm() > 0.05 * untouched.norm()
    names = [{path.relative_to(root) for path in root.rglob("*")} for root in (base, tmp_path / "merged")]
    assert names[0] == names[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("more", r"does not fit the base model.*1 missing: transformer_blocks.7.attn.to_q"),
        (
            "wider",
            r"does not fit layer transformer_blocks.0.attn.to_q.*expected 32 -> 40 in 16 or 32 bits; got \[32, 32\]",
        ),
        ("there", "there is something already; expected a new folder"),
    ],
)
def test_a_merge_that_does_not_fit_leaves_nothing(
    tiny_flux_dir: Path, tmp_path: Path, change: str, message: str
) -> None:
    lora, out, name = random_lora(tiny_flux_dir, rank=1), tmp_path / "out", "transformer_blocks.0.attn.to_q"
    if change == "more":
        lora.down["transformer_blocks.7.attn.to_q"] = lora.down[name]
        lora.up["transformer_blocks.7.attn.to_q"] = lora.up[name]
    elif change == "wider":
        lora.up[name] = torch.zeros(40, 1)
    else:
        out.mkdir()
        (out / "mine").write_text("keep")
    with pytest.raises(UserError, match=message):
        merge_into(tiny_flux_dir, lora, out)
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if change == "there" else [])
