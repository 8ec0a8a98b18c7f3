"""Stable Diffusion 1.5, SDXL and 3.5, small, in the real layout: conventions, stages, files as diffusers reads them.

FLUX has tests of its own.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from PIL import Image
from tiny_models import TEXT_TOKENS, TEXT_WIDTH, make_tiny_flux, make_tiny_sd, make_tiny_sd3

from metalora.adapters.artifacts import load_lora, load_prior, save_lora
from metalora.adapters.bank import AdapterBank
from metalora.adapters.inject import eject, inject, layer_shapes
from metalora.adapters.transform import merge_into
from metalora.backbones.backbone import DiffusersBackbone
from metalora.backbones.sd3 import load_sd3
from metalora.backbones.unet import load_sd15, load_sdxl
from metalora.core.contracts import Backbone, LoraFile, TrainingImage, TrainingPerson
from metalora.core.errors import UserError
from metalora.core.lora import LayerShape
from metalora.inference.generate import GenerationJob, generate, image_noise
from metalora.inference.start import load_start
from metalora.training.meta_training import run_meta_training
from metalora.training.personalization import run_personalization

CAPTION = "a photo of a woman"
SIZE = (16, 24)


LOADERS: dict[str, Any] = {
    "sd15": load_sd15,
    "sdxl": load_sdxl,
    "sd35": partial(load_sd3, max_text_tokens=TEXT_TOKENS),
}


@pytest.fixture(scope="module", params=LOADERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp(request.param) / request.param
    make_tiny_sd3(made) if request.param == "sd35" else make_tiny_sd(made, xl=request.param == "sdxl")
    return made


@pytest.fixture
def backbone(folder: Path) -> DiffusersBackbone:
    return LOADERS[folder.name](folder, name=folder.name)


@pytest.fixture
def stock(folder: Path) -> Any:
    pipe = DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def channels(backbone: DiffusersBackbone) -> int:
    return 16 if backbone.name == "sd35" else 4


def people(backbone: DiffusersBackbone, count: int) -> list[TrainingPerson]:
    found = []
    for k in range(count):
        draw = torch.Generator().manual_seed(k)
        shape = (2, channels(backbone), 8, 8)
        images = [TrainingImage(torch.randn(shape, generator=draw), (16, 16), str(n)) for n in range(4)]
        found.append(TrainingPerson(f"p{k}", CAPTION, tuple(images)))
    return found


def random_lora(backbone: DiffusersBackbone, *, rank: int = 2) -> LoraFile:
    draw, shapes = torch.Generator().manual_seed(5), backbone.layer_shapes
    down = {name: torch.randn(rank, shape.in_features, generator=draw) * 0.5 for name, shape in shapes.items()}
    up = {name: torch.randn(shape.out_features, rank, generator=draw) * 0.5 for name, shape in shapes.items()}
    return LoraFile(down, up, {"rank": str(rank)}, component=backbone.component)


def test_it_is_a_backbone(backbone: DiffusersBackbone) -> None:
    assert isinstance(backbone, Backbone)
    layers = backbone.target_layers()
    assert layers and layer_shapes(layers) == backbone.layer_shapes
    assert backbone.pixel_multiple == 4
    assert backbone.component == ("transformer" if backbone.name == "sd35" else "unet")
    if backbone.component == "unet":  # query, key, value, output; to itself and to the text
        assert all(".attn" in name for name in layers) and len(layers) % 8 == 0
        cross = next(shape for name, shape in backbone.layer_shapes.items() if name.endswith("attn2.to_k"))
        assert cross == LayerShape(TEXT_WIDTH * (2 if backbone.name == "sdxl" else 1), 16)
    else:  # every Linear of the blocks, the second attention's and the modulation's too
        assert {"transformer_blocks.0.attn2.to_q", "transformer_blocks.1.norm1.linear"} <= set(layers)


def test_text_and_latents_are_the_pipeline_s(backbone: DiffusersBackbone, stock: Any) -> None:
    captions = [CAPTION, "a man"]
    text = backbone.encode_text(captions)
    options = {"prompt": captions, "device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    if backbone.name == "sd35":
        options |= {"prompt_2": None, "prompt_3": None, "max_sequence_length": TEXT_TOKENS}
    with torch.no_grad():
        theirs = stock.encode_prompt(**options)
    assert torch.equal(text.tokens_BLD, theirs[0])
    assert text.pooled_BP.shape == (2, {"sd15": 0, "sdxl": TEXT_WIDTH, "sd35": 2 * TEXT_WIDTH}[backbone.name])
    if backbone.name != "sd15":
        assert torch.equal(text.pooled_BP, theirs[2])
    pixels = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        mode, config = stock.vae.encode(pixels).latent_dist.mode(), stock.vae.config
    torch.testing.assert_close(
        backbone.encode_image(pixels), (mode - (config.shift_factor or 0)) * config.scaling_factor
    )


def test_sampling_with_predict_is_the_pipeline_s_sampling(backbone: DiffusersBackbone, stock: Any) -> None:
    noise = torch.randn(1, channels(backbone), 8, 12, generator=torch.Generator().manual_seed(1))
    options = {"height": SIZE[0], "width": SIZE[1], "guidance_scale": 1.0, "num_inference_steps": 3}
    if backbone.name == "sd35":
        options["max_sequence_length"] = TEXT_TOKENS
    theirs = stock(CAPTION, latents=noise, output_type="latent", **options).images
    text, scheduler = backbone.encode_text([CAPTION]), stock.scheduler
    scheduler.set_timesteps(3)
    ours = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    with torch.no_grad():
        for step in scheduler.timesteps:
            seen = scheduler.scale_model_input(ours, step) if backbone.component == "unet" else ours
            t_B = torch.tensor([float(step) / scheduler.config.num_train_timesteps])
            guess = backbone.predict(seen, t_B=t_B, text=text, guidance=1.0)
            ours = scheduler.step(guess, step, ours).prev_sample
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_fresh_adapter_changes_no_bit(backbone: DiffusersBackbone) -> None:
    x, t_B = torch.randn(2, channels(backbone), 8, 8), torch.tensor([0.1, 0.9])
    text = backbone.encode_text([CAPTION, "a man"])
    with torch.no_grad():
        before = backbone.predict(x, t_B=t_B, text=text, guidance=1.0)
        bank = AdapterBank(backbone.layer_shapes, identities=["a", "b"], rank=1, meta_rank=4, seed=0)
        handle = inject(backbone.denoiser, bank)
        bank.set_route(torch.tensor([0, 1]))
        assert torch.equal(backbone.predict(x, t_B=t_B, text=text, guidance=1.0), before)
        bank.rows.normal_(generator=torch.Generator().manual_seed(0))
        bank.set_route(torch.tensor([0, 1]))
        together = backbone.predict(x, t_B=t_B, text=text, guidance=1.0)
        for k in range(2):  # a batch that mixes identities equals each alone
            bank.set_route(torch.tensor([k]))
            one = torch.tensor([k])
            alone = backbone.predict(x[one], t_B=t_B[one], text=text.rows(one), guidance=1.0)
            torch.testing.assert_close(alone, together[one], rtol=1e-4, atol=1e-4)
        eject(handle)
    assert not torch.equal(together, before)


def test_both_stages_and_what_diffusers_makes_of_the_result(
    backbone: DiffusersBackbone, stock: Any, tmp_path: Path
) -> None:
    shared = {"learning_rate": 0.05, "seed": 0, "log_every": 5}
    stage1 = {"q_bucket": 8, "q_warmup": 3, "q_total": 16, "uses_per_example": 8 * 4 / 8, "batch_size": 4}
    path = run_meta_training(backbone, people(backbone, 4), meta_rank=4, out=tmp_path / "prior", **stage1, **shared)
    prior = load_prior(path)
    assert set(prior.meta_down) == set(backbone.layer_shapes)
    stage2 = {"method": "meta_lora", "rank": 2, "meta_rank": 4, "prior": prior, "iterations": [10]}
    made = run_personalization(backbone, people(backbone, 2), out=tmp_path / "both", **stage2, **shared)
    alone = run_personalization(backbone, people(backbone, 1), out=tmp_path / "one", **stage2, **shared)
    both, one = (load_lora(run.loras["p0"][10]) for run in (made, alone))
    for name in both.down:  # a cohort gives everybody the LoRA of training alone
        torch.testing.assert_close(both.up[name] @ both.down[name], one.up[name] @ one.down[name], rtol=1e-2, atol=1e-4)
    assert both.component == backbone.component and any(up.any() for up in both.up.values())
    assert_stock_draws_the_same(backbone, stock, made.loras["p0"][10], tmp_path, rank=2)


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_stock_diffusers_makes_the_same_image_of_the_file(
    backbone: DiffusersBackbone, stock: Any, tmp_path: Path, layout: str
) -> None:
    """Drawn with classifier-free guidance: the denoiser sees every image twice, the route has to hold for both."""
    path = tmp_path / f"{layout}.safetensors"
    lora = random_lora(backbone)
    if backbone.name == "sd35" and layout == "kohya":
        with pytest.raises(UserError, match="Kohya layout has no names for this"):
            save_lora(path, lora, layout=layout)
        return
    save_lora(path, lora, layout=layout)
    back = load_lora(path)
    assert back.component == backbone.component and set(back.down) == set(lora.down)
    assert all(torch.equal(back.up[name], lora.up[name]) for name in lora.up)
    assert_stock_draws_the_same(backbone, stock, path, tmp_path, rank=2)


def assert_stock_draws_the_same(
    backbone: DiffusersBackbone, stock: Any, path: Path, tmp_path: Path, *, rank: int
) -> None:
    prompt = {"prompt_id": "a", "prompt": CAPTION, "seed": 3}
    jobs = [
        GenerationJob("p0", "woman", "lora", rank, 10, path, **prompt),
        GenerationJob("base", "woman", "base", 0, 0, None, **prompt),
    ]
    sampling = {"steps": 3, "guidance": 5.0, "size": SIZE}
    records = generate(backbone, jobs, **sampling, batch_size=4, out=tmp_path / "images")
    ours = [np.asarray(Image.open(tmp_path / "images" / r.file), dtype=np.int16) for r in records]

    def theirs() -> np.ndarray:
        noise = image_noise(seed=3, prompt_id="a")
        options = {"num_inference_steps": 3, "guidance_scale": 5.0, "height": SIZE[0], "width": SIZE[1]}
        if backbone.name == "sd35":
            options["max_sequence_length"] = TEXT_TOKENS
        return np.asarray(stock(CAPTION, generator=noise, **options).images[0], dtype=np.int16)

    assert np.abs(ours[1] - theirs()).max() <= 1
    stock.load_lora_weights(str(path.parent), weight_name=path.name)
    assert np.abs(ours[0] - theirs()).max() <= 1
    stock.unload_lora_weights()
    assert np.abs(ours[0] - ours[1]).mean() > 0.2


def test_merged_and_drawn_over(backbone: DiffusersBackbone, folder: Path, tmp_path: Path) -> None:
    lora = random_lora(backbone)
    save_lora(tmp_path / "lora.safetensors", lora)
    assert merge_into(folder, lora, tmp_path / "merged") == len(lora.down)
    merged = LOADERS[backbone.name](tmp_path / "merged", name="merged")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)).save(tmp_path / "p.png")
    mask = np.zeros((32, 48), dtype=np.uint8)
    mask[:, 24:] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    for name, masked in (("over", None), ("part", tmp_path / "m.png")):
        start = load_start(tmp_path / "p.png", masked, size=SIZE, denoise=0.7, steps=3)
        sampling = {"steps": 3, "guidance": 5.0, "size": SIZE, "start": start, "batch_size": 2}
        job = GenerationJob("p0", "woman", "lora", 2, 1, tmp_path / "lora.safetensors", "a", CAPTION, 0)
        base = GenerationJob("base", "woman", "base", 0, 0, None, "a", CAPTION, 0)
        (one,) = generate(backbone, [job], **sampling, out=tmp_path / name)
        (other,) = generate(merged, [base], **sampling, out=tmp_path / f"{name}-merged")
        images = [
            np.asarray(Image.open(tmp_path / f / r.file), dtype=np.int16)
            for f, r in ((name, one), (f"{name}-merged", other))
        ]
        assert images[0].shape == (*SIZE, 3) and np.abs(images[0] - images[1]).max() <= 1


def test_sd3_without_its_t5(tmp_path: Path) -> None:
    """As many have it on disk: the largest encoder left out."""
    make_tiny_sd3(tmp_path / "whole")
    pipe = StableDiffusion3Pipeline.from_pretrained(tmp_path / "whole", text_encoder_3=None, tokenizer_3=None)
    pipe.save_pretrained(tmp_path / "small")
    backbone = load_sd3(tmp_path / "small", name="sd35", max_text_tokens=TEXT_TOKENS)
    assert backbone.directory.text_encoders == ("text_encoder", "text_encoder_2") and backbone.text_fingerprint
    assert backbone.text_fingerprint != load_sd3(tmp_path / "whole", name="sd35").text_fingerprint


def test_v_prediction_and_strange_directories(tmp_path: Path) -> None:
    make_tiny_sd(tmp_path / "v", xl=False, prediction="v_prediction")
    assert load_sd15(tmp_path / "v", name="v").objective.prediction == "v_prediction"
    make_tiny_sd(tmp_path / "sample", xl=False, prediction="sample")
    with pytest.raises(UserError, match="trained for something else; expected epsilon or v_prediction; got sample"):
        load_sd15(tmp_path / "sample", name="x").objective  # noqa: B018
    make_tiny_flux(tmp_path / "flux")
    for load, expected in ((load_sd15, "Diffusion"), (load_sdxl, "DiffusionXL"), (load_sd3, "Diffusion3")):
        with pytest.raises(UserError, match=rf"expected a Stable{expected}Pipeline directory .*got a FluxPipeline"):
            load(tmp_path / "flux", name="x")
