"""The FLUX backbone follows the stock pipeline in every convention, and says so when it cannot be opened."""

import gc
import json
import shutil
import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from tiny_models import make_tiny_flux

from metalora.adapters.bank import row_sizes
from metalora.adapters.inject import layer_shapes
from metalora.backbones.backbone import DiffusersBackbone
from metalora.backbones.fingerprint import fingerprint
from metalora.backbones.flux import block_linears, load_flux, pack, unpack
from metalora.core.contracts import Backbone, MemoryUse
from metalora.core.errors import UserError

CAPTIONS = ["a photo of man", "pencil drawing of woman on beach"]


@pytest.fixture(scope="module")
def stock(tiny_flux_dir: Path) -> FluxPipeline:
    pipeline = FluxPipeline.from_pretrained(tiny_flux_dir, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_it_is_a_backbone(tiny_backbone: DiffusersBackbone) -> None:
    assert isinstance(tiny_backbone, Backbone)
    assert tiny_backbone.pixel_multiple == 8
    assert not any(parameter.requires_grad for parameter in tiny_backbone.denoiser.parameters())
    assert not tiny_backbone.denoiser.training


def test_text_is_what_the_pipeline_embeds(tiny_backbone: DiffusersBackbone, stock: FluxPipeline) -> None:
    text = tiny_backbone.encode_text(CAPTIONS)
    with torch.no_grad():
        tokens, pooled, _ = stock.encode_prompt(CAPTIONS, max_sequence_length=8)
    assert text.tokens_BLD.shape == (2, 8, 16) and torch.equal(text.tokens_BLD, tokens)
    assert torch.equal(text.pooled_BP, pooled) and not torch.equal(pooled[0], pooled[1])


def test_latents_decode_to_the_image_as_the_pipeline_decodes(
    tiny_backbone: DiffusersBackbone, stock: FluxPipeline
) -> None:
    pixels = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = tiny_backbone.encode_image(pixels)
    assert latents.shape == (2, 4, 4, 6) and torch.equal(latents, tiny_backbone.encode_image(pixels))
    unscaled = latents / stock.vae.config.scaling_factor + stock.vae.config.shift_factor
    torch.testing.assert_close(unscaled, stock.vae.encode(pixels).latent_dist.mean)


def test_packing_is_the_pipeline_s_and_turns_back() -> None:
    latents = torch.arange(2 * 4 * 4 * 6.0).view(2, 4, 4, 6)
    packed = pack(latents)
    assert packed.shape == (2, 6, 16)
    assert packed[0, 1].tolist() == [latents[0, c, y, x].item() for c in range(4) for y in (0, 1) for x in (2, 3)]
    assert torch.equal(unpack(packed, height=4, width=6), latents)


def test_sampling_with_predict_is_the_pipeline_s_sampling(
    tiny_backbone: DiffusersBackbone, stock: FluxPipeline
) -> None:
    steps, guidance = 3, 3.5
    noise = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(1))
    arguments = {"height": 16, "width": 24, "max_sequence_length": 8, "output_type": "latent"}
    theirs = stock(
        CAPTIONS[0], num_inference_steps=steps, guidance_scale=guidance, latents=pack(noise), **arguments
    ).images
    text = tiny_backbone.encode_text(CAPTIONS[:1])
    times = [*torch.linspace(1, 1 / steps, steps).tolist(), 0.0]
    ours = noise
    with torch.no_grad():
        for t, following in pairwise(times):
            velocity = tiny_backbone.predict(ours, t_B=torch.tensor([t]), text=text, guidance=guidance)
            ours = ours + (following - t) * velocity
    torch.testing.assert_close(pack(ours), theirs, rtol=1e-4, atol=1e-5)


def test_samples_of_a_batch_do_not_see_each_other(tiny_backbone: DiffusersBackbone) -> None:
    x, t = torch.randn(3, 4, 6, 4), torch.tensor([0.1, 0.5, 0.9])
    text = tiny_backbone.encode_text([*CAPTIONS, "a man"])
    with torch.no_grad():
        together = tiny_backbone.predict(x, t_B=t, text=text, guidance=1.0)
        for sample in range(3):
            pick = torch.tensor([sample])
            alone = tiny_backbone.predict(x[pick], t_B=t[pick], text=text.rows(pick), guidance=1.0)
            torch.testing.assert_close(alone, together[pick], rtol=1e-4, atol=1e-5)


def test_time_text_and_guidance_are_heard(tiny_backbone: DiffusersBackbone) -> None:
    x, text = torch.randn(1, 4, 4, 4), tiny_backbone.encode_text(CAPTIONS)
    first = {"t_B": torch.tensor([0.5]), "text": text.rows(torch.tensor([0])), "guidance": 1.0}
    with torch.no_grad():
        base = tiny_backbone.predict(x, **first)
        for change in ({"t_B": torch.tensor([0.6])}, {"text": text.rows(torch.tensor([1]))}, {"guidance": 3.5}):
            assert not torch.equal(base, tiny_backbone.predict(x, **{**first, **change})), change


def test_encoders_are_released_and_come_back(tiny_backbone: DiffusersBackbone, stock: FluxPipeline) -> None:
    transformer = tiny_backbone.denoiser
    before = tiny_backbone.encode_text(CAPTIONS).tokens_BLD
    tiny_backbone.release_encoders()
    assert tiny_backbone._text is None and tiny_backbone._vae is None
    pipeline = tiny_backbone.pipeline()
    assert pipeline.transformer is transformer
    assert torch.equal(tiny_backbone.encode_text(CAPTIONS).tokens_BLD, before)
    pipeline.set_progress_bar_config(disable=True)
    arguments = {"height": 16, "width": 16, "num_inference_steps": 2, "max_sequence_length": 8, "output_type": "np"}
    images = [
        pipe(CAPTIONS[0], generator=torch.Generator().manual_seed(0), **arguments).images for pipe in (pipeline, stock)
    ]
    assert (images[0] == images[1]).all()


def test_the_encoders_leave_before_the_denoiser_comes(tiny_backbone: DiffusersBackbone) -> None:
    tiny_backbone.encode_text(["a man"])
    tiny_backbone.encode_image(torch.zeros(1, 3, 16, 16))
    assert tiny_backbone._text is not None and tiny_backbone._vae is not None
    parts = [tiny_backbone._text.text_encoder_2, tiny_backbone._text.text_encoder, tiny_backbone._vae]
    alive = [weakref.ref(part) for part in parts]
    del parts
    seen: list[int] = []
    read = FluxTransformer2DModel.from_pretrained

    def counting(*arguments: Any, **options: Any) -> FluxTransformer2DModel:
        gc.collect()
        seen.append(sum(part() is not None for part in alive))
        return read(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FluxTransformer2DModel, "from_pretrained", counting)
        drawing = tiny_backbone.pipeline(text=False)
    assert seen == [0] and drawing.text_encoder is None and drawing.text_encoder_2 is None


def test_widths_are_known_without_weights(tiny_flux_dir: Path, tmp_path: Path) -> None:
    expected = layer_shapes(load_flux(tiny_flux_dir, name="tiny").target_layers())
    shutil.copytree(tiny_flux_dir, tmp_path / "flux")
    weights = tmp_path / "flux/transformer/diffusion_pytorch_model.safetensors"
    weights.write_bytes(b"not read")
    assert load_flux(tmp_path / "flux", name="tiny").layer_shapes == expected and len(expected) == 20


def test_a_sharded_directory_is_the_same_model(tiny_flux_dir: Path, tmp_path: Path) -> None:
    make_tiny_flux(tmp_path / "flux", max_shard_size="60KB")
    shards = sorted((tmp_path / "flux/transformer").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    whole, parts = (load_flux(folder, name="tiny").denoiser for folder in (tiny_flux_dir, tmp_path / "flux"))
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(one, other)
    shards[1].unlink()
    with pytest.raises(UserError, match=rf"cannot be opened; .*got no {shards[1].name} of its index in .*transformer"):
        load_flux(tmp_path / "flux", name="tiny")


def test_a_pointer_of_git_lfs_is_no_weights_file(tiny_flux_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_flux_dir, tmp_path / "flux")
    for part in ("transformer", "vae"):
        weights = next((tmp_path / "flux" / part).glob("*.safetensors"))
        weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    backbone = load_flux(tmp_path / "flux", name="x")
    for read in (lambda: backbone.fingerprint, lambda: backbone.encoder_fingerprint, lambda: backbone.denoiser):
        with pytest.raises(UserError, match=r"cannot be read.*key: backbone\.path"):
            read()


def test_weights_are_read_only_when_needed(tiny_flux_dir: Path) -> None:
    backbone = load_flux(tiny_flux_dir, name="tiny")
    backbone.encode_text(["a man"])
    assert "denoiser" not in vars(backbone), "text encoders and transformer would share memory"


def test_dtype_and_gradient_checkpointing(tiny_flux_dir: Path) -> None:
    backbone = load_flux(tiny_flux_dir, name="tiny", dtype="bfloat16", max_text_tokens=8, memory=MemoryUse(None, "all"))
    assert {parameter.dtype for parameter in backbone.denoiser.parameters()} == {torch.bfloat16}
    assert backbone.denoiser.gradient_checkpointing
    text = backbone.encode_text(CAPTIONS[:1])
    assert text.tokens_BLD.dtype == torch.bfloat16
    assert backbone.predict(torch.randn(1, 4, 4, 4), t_B=torch.tensor([0.5]), text=text, guidance=1.0).shape[1] == 4


def test_the_fingerprint_is_the_weights_and_the_configuration(tiny_flux_dir: Path, tmp_path: Path) -> None:
    transformer = tmp_path / "transformer"
    shutil.copytree(tiny_flux_dir / "transformer", transformer)
    original = fingerprint(transformer)
    assert original == load_flux(tiny_flux_dir, name="other").fingerprint and len(original) == 64
    config, weights = transformer / "config.json", next(transformer.glob("*.safetensors"))
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({**settings, "_diffusers_version": "0"}))
    assert fingerprint(transformer) == original
    config.write_text(json.dumps({**settings, "num_layers": 7}))
    assert fingerprint(transformer) != original
    config.write_text(json.dumps(settings))
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    assert fingerprint(transformer) != original


def test_a_variant_beside_the_weights_is_no_other_model(tiny_flux_dir: Path, tmp_path: Path) -> None:
    make_tiny_flux(tmp_path / "parts", max_shard_size="60KB")
    shutil.copytree(tiny_flux_dir, tmp_path / "whole")
    for folder in (tmp_path / "parts/transformer", tmp_path / "whole/transformer", tmp_path / "whole/text_encoder"):
        before, shard = fingerprint(folder), sorted(folder.glob("*.safetensors"))[0]
        variant = shard.with_name(shard.name.replace("model", "model.fp16", 1))
        variant.write_bytes(shard.read_bytes())
        assert fingerprint(folder) == before
        with shard.open("ab") as file:
            file.write(b" ")
        assert fingerprint(folder) != before


def test_a_directory_that_is_no_flux_pipeline_is_refused(tiny_flux_dir: Path, tmp_path: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match + r".*key: backbone\.path"):
            load_flux(tmp_path / "flux", name="x").denoiser  # noqa: B018

    refused("expected a FluxPipeline directory.*is no directory")
    (tmp_path / "flux").mkdir()
    refused("no model_index.json")
    (tmp_path / "flux" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    refused("a StableDiffusionPipeline in")
    shutil.rmtree(tmp_path / "flux")
    shutil.copytree(tiny_flux_dir, tmp_path / "flux")
    weights = next((tmp_path / "flux" / "transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    refused("cannot be read")
    weights.rename(weights.with_suffix(".bin"))
    refused("no safetensors weights")
    with pytest.raises(UserError, match=r"float32 or bfloat16 or float16; got int8; key: backbone\.dtype"):
        load_flux(tiny_flux_dir, name="x", dtype="int8")


def test_pickled_text_encoders_are_not_opened(tiny_flux_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_flux_dir, tmp_path / "flux")
    weights = next((tmp_path / "flux" / "text_encoder").glob("*.safetensors"))
    torch.save({}, weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        load_flux(tmp_path / "flux", name="x").encode_text(["a man"])


def test_flux_dev_has_the_paper_s_layers() -> None:
    """The public configuration of FLUX.1-dev: 19 double and 38 single blocks, 24 heads of 128."""
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(
            num_layers=19, num_single_layers=38, num_attention_heads=24, attention_head_dim=128, guidance_embeds=True
        )
    layers = layer_shapes(block_linears(transformer))
    assert len(layers) == 494
    inputs, outputs = sum(s.in_features for s in layers.values()), sum(s.out_features for s in layers.values())
    assert (inputs, outputs) == (2_334_720, 3_035_136)
    assert 128 * inputs == 298_844_160
    assert sum(row_sizes(layers, rank=1, meta_rank=128)) == 3_098_368
    plain = {rank: sum(row_sizes(layers, rank=rank, meta_rank=None)) for rank in (1, 2, 4, 8, 16)}
    assert plain == {1: 5_369_856, 2: 10_739_712, 4: 21_479_424, 8: 42_958_848, 16: 85_917_696}
