"""The tiny models as stock libraries see them, and the fast forward against diffusers' own."""

import itertools
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from diffusers import FluxPipeline

from metalora.miniworld.build.clip import make_clip
from metalora.miniworld.build.export import export_clip, export_flux, export_vae
from metalora.miniworld.build.flat import gather, lay_out, orthogonalized, scatter, share
from metalora.miniworld.build.flux_data import image_ids
from metalora.miniworld.build.forward import rotary, velocity
from metalora.miniworld.build.models import TEXT_LENGTH, FluxModels, make_flux, make_vae
from metalora.miniworld.build.sample import load_pipeline_models, sample_images, start_noise
from metalora.miniworld.build.wordlist import make_tokenizer


def _models(seed: int = 0) -> FluxModels:
    return make_flux(vocabulary=len(make_tokenizer()), seed=seed, double=1, single=2)


@pytest.fixture(scope="module")
def pipeline_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pipeline")
    vae = make_vae(widths=(8, 16, 16), seed=3)
    vae.register_to_config(scaling_factor=0.7, shift_factor=0.1)
    export_vae(directory, vae=vae)
    export_flux(directory, models=_models(), shift=1.7)
    return directory


def test_fast_forward_equals_diffusers() -> None:
    transformer = _models().transformer
    source = torch.Generator().manual_seed(0)
    x, text = torch.randn(3, 63, 32, generator=source), torch.randn(3, TEXT_LENGTH, 96, generator=source)
    pooled, time = torch.randn(3, 96, generator=source), torch.rand(3, generator=source)
    guidance, ids = torch.tensor([1.0, 2.0, 5.0]), image_ids(9, 7)
    with torch.no_grad():
        theirs = transformer(
            hidden_states=x,
            timestep=time,
            guidance=guidance,
            pooled_projections=pooled,
            encoder_hidden_states=text,
            txt_ids=torch.zeros(TEXT_LENGTH, 3),
            img_ids=ids,
            return_dict=False,
        )[0]
        ours = velocity(
            transformer,
            x,
            time_B=time,
            guidance_B=guidance,
            text_BTW=text,
            pooled_BW=pooled,
            rotary_LD=rotary(transformer, text_tokens=TEXT_LENGTH, image_ids=ids),
        )
    assert theirs.abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_own_sampler_equals_the_stock_pipeline(pipeline_directory: Path) -> None:
    pipeline = FluxPipeline.from_pretrained(pipeline_directory, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    prompts = ["a photo of a man", "a photo of a woman on a beach"]
    noise = start_noise(2, height=72, width=56, source=torch.Generator().manual_seed(1))
    theirs = pipeline(
        prompts,
        height=72,
        width=56,
        num_inference_steps=3,
        guidance_scale=3.5,
        latents=noise,
        max_sequence_length=TEXT_LENGTH,
        output_type="np",
    ).images
    models, vae, shift = load_pipeline_models(pipeline_directory)
    assert shift == 1.7
    ours = sample_images(models, vae, prompts, noise_BNC=noise, height=72, width=56, guidance=3.5, steps=3, shift=shift)
    assert np.ptp(theirs) > 0.01
    np.testing.assert_allclose((ours / 2 + 0.5).permute(0, 2, 3, 1).numpy(), theirs, atol=2e-5)


def test_pipeline_runs_in_fp32_from_bf16_files(pipeline_directory: Path) -> None:
    pipeline = FluxPipeline.from_pretrained(pipeline_directory, local_files_only=True)
    for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
        assert {parameter.dtype for parameter in part.parameters()} == {torch.float32}


def test_exported_clip_opens_with_open_clip(tmp_path: Path) -> None:
    model = make_clip(seed=0).eval()
    export_clip(tmp_path, model=model)
    name = f"local-dir:{tmp_path}"
    again, _, _ = open_clip.create_model_and_transforms(name)
    tokens = open_clip.get_tokenizer(name)(["a photo of a man", "a pop art poster of a woman"])
    assert tokens.shape == (2, TEXT_LENGTH)
    with torch.no_grad():
        torch.testing.assert_close(again.eval().encode_text(tokens), model.encode_text(tokens), atol=0.05, rtol=0.05)


def test_muon_updates_are_nearly_orthogonal() -> None:
    x = torch.randn(3, 128, 32, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(orthogonalized(x).float())
    assert singular.min() > 0.5
    assert singular.max() < 1.3


def test_flat_layout_covers_every_parameter_once() -> None:
    modules = _models().named_modules()
    slots = lay_out(modules)
    flat = torch.zeros(slots[-1].stop)
    gather(modules, slots, flat, gradients=False)
    other = _models(seed=1).named_modules()
    scatter(other, slots, flat)
    for name, module in modules.items():
        for ours, theirs in zip(module.parameters(), other[name].parameters(), strict=True):
            assert torch.equal(ours, theirs)
    shares = [share(slots, rank=rank, world=2) for rank in range(2)]
    owned = sorted(slot.start for pair in shares for part in pair for slot in part)
    assert owned == sorted(slot.start for slot in slots)
    for _, rest in shares:  # AdamW's share is one contiguous range
        assert all(a.stop == b.start for a, b in itertools.pairwise(rest))
