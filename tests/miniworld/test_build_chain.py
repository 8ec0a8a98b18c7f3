"""The whole build shrunk to seconds, and trainings that are killed and continued."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FluxPipeline

from metalora.core.errors import UserError
from metalora.miniworld.build.chain import Chain, build, samples_seen
from metalora.miniworld.build.clip import ClipRecipe, cut_heads, describe
from metalora.miniworld.build.data import load_corpus
from metalora.miniworld.build.decoder import DecoderRecipe, face_weights, train_decoder, with_trained_decoder
from metalora.miniworld.build.face import FaceRecipe, load_face, train_face
from metalora.miniworld.build.flux import FluxRecipe, Predictor, error_weights, guided_target, train_flux
from metalora.miniworld.build.flux_data import FluxData, face_coverage
from metalora.miniworld.build.loop import Plan, read_checkpoint
from metalora.miniworld.build.models import make_flux
from metalora.miniworld.build.vae import VaeRecipe, train_vae, trained_vae
from metalora.miniworld.shots import sample_shot

FLUX = FluxRecipe(
    plan=Plan(steps=4),
    schedule=((0, 1e-3, 1e-3), (4, 0.0, 0.0)),
    distill=((2, 4),),
    batch=4,
    captions=2,
    double=1,
    single=1,
    workers=1,
    compile=False,
    face_weight=3.0,
)
TINY = Chain(
    corpus={"people": 8, "photos": 8, "seed": 0},
    portraits={"people": 8, "photos": 1, "seed": 0},
    vae_rows={"64x64": 16},
    vae=VaeRecipe(plan=Plan(steps=3), batch=2, widths=(8, 16, 16)),
    decoder=DecoderRecipe(plan=Plan(steps=3), batch=2),
    face=FaceRecipe(plan=Plan(steps=3), batch=8, widths=(16, 32, 32), depths=(1, 1, 1), dimension=16),
    clip=(ClipRecipe(plan=Plan(steps=1), batch=8, heads=0), ClipRecipe(plan=Plan(steps=2), batch=8, heads=4)),
    flux=(replace(FLUX, plan=Plan(steps=2), distill=()), FLUX),
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    state = tmp_path_factory.mktemp("build")
    build(state, chain=TINY, command="test", quiet=True)
    return state


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _flux_data() -> FluxData:
    source = torch.Generator().manual_seed(0)
    latents = {"64x64": torch.randn(16, 8, 16, 16, generator=source).half()}
    tokens = torch.randint(2, 90, (16, 2, 24), generator=source).to(torch.uint8)
    boxes = np.tile([16.0, 16.0, 40.0, 48.0], (16, 1))
    faces = {"64x64": face_coverage(boxes, grid=(8, 8))}
    return FluxData(latents, {"64x64": np.arange(16)}, {"64x64": tokens}, faces, tokens[0, 0])


def test_a_face_box_covers_its_tokens() -> None:
    covered = face_coverage(np.array([[12.0, 16.0, 40.0, 20.0]]), grid=(4, 8)).view(4, 8).float()
    np.testing.assert_allclose(covered[2], [0, 0.25, 0.5, 0.5, 0.5, 0, 0, 0])
    assert covered.count_nonzero() == 4


def test_faces_weigh_more_only_where_noise_does_not_hide_them() -> None:
    faces = torch.zeros(3, 4)
    faces[:, 0] = 1.0
    weights = error_weights(faces, torch.tensor([0.3, 0.6, 0.95]), face_weight=5.0)
    ratios = weights[:, 0] / weights[:, 1]
    np.testing.assert_allclose(ratios, [5.0, 5.0, 1.0], rtol=1e-5)
    assert weights.mean() == pytest.approx(1.0)


def test_samples_of_a_training_in_parts_are_added_up() -> None:
    parts = (replace(FLUX, plan=Plan(steps=3), batch=8), replace(FLUX, plan=Plan(steps=5), batch=2))
    assert [samples_seen(parts, step=step) for step in (2, 3, 4, 5)] == [16, 24, 26, 28]


def test_a_head_is_cut_around_the_face() -> None:
    images = torch.full((2, 3, 48, 88), -1.0)
    images[:, :, 10:30, 50:66] = 1.0
    heads = cut_heads(images, np.tile([50.0, 10.0, 66.0, 30.0], (2, 1)), np.random.default_rng(0))
    assert heads.shape == (2, 3, 64, 64)
    bright = (heads[:, 0] > 0).float().mean((1, 2)).tolist()
    assert all(0.8 / 2.2**2 < share < 0.8 / 1.4**2 for share in bright)


def test_the_build_gives_complete_weights(built: Path) -> None:
    weights = built / "weights"
    pipeline = FluxPipeline.from_pretrained(weights / "flux", local_files_only=True)
    assert pipeline.vae.config.scaling_factor != 1.0
    load_face(weights / "face")
    told = json.loads((weights / "provenance.json").read_text())
    assert told["trained"]["flux"]["samples_seen"] == 16
    assert told["trained"]["clip"]["samples_seen"] == 16
    for name, digest in told["sha256"].items():
        assert _digest(weights / name) == digest
    assert {"flux/transformer/diffusion_pytorch_model.safetensors", "clip/open_clip_model.safetensors"} <= set(
        told["sha256"]
    )


def test_a_second_build_does_nothing(built: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in built.rglob("*") if path.is_file()}
    build(built, chain=TINY, command="test", quiet=True)
    assert {path: path.stat().st_mtime_ns for path in built.rglob("*") if path.is_file()} == before


def test_held_out_people_are_the_last_of_each_class(built: Path) -> None:
    table = load_corpus(built / "corpus").table
    assert sorted(set(table[table.held_out].identity)) == ["base-man-0003", "base-woman-0003"]
    kept = load_corpus(built / "corpus").select(held_out=False)
    assert "base-man-0003" not in set(kept.table.identity)


def test_an_unfinished_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not finished"):
        load_corpus(tmp_path)


def test_batches_do_not_depend_on_where_they_start(built: Path) -> None:
    corpus = load_corpus(built / "corpus")
    whole = corpus.batches(batch=8, seed=3)
    first = [next(whole) for _ in range(9)]
    later = corpus.batches(batch=8, seed=3, start=5)
    for (size, positions), (other_size, others) in zip(first[5:], [next(later) for _ in range(4)], strict=True):
        assert size == other_size
        np.testing.assert_array_equal(positions, others)


@pytest.mark.parametrize("stage", ["vae", "decoder", "face"])
def test_a_cut_training_ends_with_the_same_file(built: Path, tmp_path: Path, stage: str) -> None:
    corpus = load_corpus(built / "corpus").select(held_out=False)
    plan = Plan(steps=4, checkpoint_seconds=0.0)
    recipe = replace(getattr(TINY, stage), plan=plan)

    def train(state: Path) -> None:
        state.mkdir(exist_ok=True)
        if stage == "vae":
            train_vae(corpus, recipe=recipe, state=state, quiet=True)
        elif stage == "decoder":
            train_decoder(corpus, latents=_latents(built), vae=_vae(built), recipe=recipe, state=state, quiet=True)
        else:
            train_face([corpus], recipe=recipe, state=state, quiet=True)

    train(tmp_path / "whole")
    cut, checkpoint = tmp_path / "cut", tmp_path / "cut" / f"{stage}.safetensors"

    class CutError(Exception):
        pass

    def stop_at_two(step: int) -> float:
        if step == 2:
            raise CutError
        return original(step)

    original = plan.rate
    object.__setattr__(plan, "rate", stop_at_two)
    with pytest.raises(CutError):
        train(cut)
    object.__setattr__(plan, "rate", original)
    assert checkpoint.is_file()
    train(cut)
    assert _tensors(tmp_path / "whole" / f"{stage}.safetensors") == _tensors(checkpoint)


def _vae(built: Path) -> AutoencoderKL:
    corpus = load_corpus(built / "corpus", rows=TINY.vae_rows).select(held_out=False)
    return trained_vae(corpus, recipe=TINY.vae, state=built)


def _latents(built: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(built / "latents.safetensors")[0]


def test_only_the_decoder_is_trained_again(built: Path) -> None:
    before, after = _vae(built), with_trained_decoder(_vae(built), state=built)
    changed = {name for name, value in after.state_dict().items() if not value.equal(before.state_dict()[name])}
    assert changed
    assert all(name.startswith("decoder.") for name in changed)
    assert after.config.scaling_factor == before.config.scaling_factor
    shipped = FluxPipeline.from_pretrained(built / "weights" / "flux", local_files_only=True).vae
    for name, value in after.state_dict().items():
        torch.testing.assert_close(shipped.state_dict()[name].float(), value, rtol=1e-2, atol=1e-2)
        if name in changed:
            assert not torch.equal(shipped.state_dict()[name].float(), before.state_dict()[name].bfloat16().float())


def test_a_longer_training_of_the_decoder_draws_better(built: Path, tmp_path: Path) -> None:
    corpus = load_corpus(built / "corpus").select(held_out=False)
    recipe = DecoderRecipe(plan=Plan(steps=60, warmup=0.0), batch=4, rate=3e-3)
    train_decoder(corpus, latents=_latents(built), vae=_vae(built), recipe=recipe, state=tmp_path, quiet=True)
    found = load_corpus(built / "corpus")
    z = _latents(built)["64x64"][:8].float()
    target = torch.from_numpy(found.images["64x64"][:8].copy()).permute(0, 3, 1, 2).float() / 127.5 - 1

    def error(vae: AutoencoderKL) -> float:
        with torch.inference_mode():
            made = vae.decode(z / vae.config.scaling_factor + vae.config.shift_factor).sample
        return (made - target).abs().mean().item()

    assert error(with_trained_decoder(_vae(built), state=tmp_path)) < 0.95 * error(_vae(built))


def test_latents_of_other_pictures_are_refused(built: Path, tmp_path: Path) -> None:
    corpus = load_corpus(built / "corpus").select(held_out=False)
    latents = {size: value[:-1] for size, value in _latents(built).items()}
    with pytest.raises(UserError, match="latents of other pictures"):
        train_decoder(corpus, latents=latents, vae=_vae(built), recipe=TINY.decoder, state=tmp_path, quiet=True)


def test_faces_weigh_more_in_pixels() -> None:
    weights = face_weights(np.array([[2.0, 1.0, 4.0, 3.0]]), height=4, width=6, weight=4.0)[0, 0]
    inside = torch.zeros(4, 6, dtype=torch.bool)
    inside[1:3, 2:4] = True
    np.testing.assert_allclose((weights[inside].mean() / weights[~inside].mean()).item(), 4.0, rtol=1e-6)
    assert weights.mean().item() == pytest.approx(1.0)


class _Teacher:
    """Says v = 3 with a caption, 1 without, 0 without a caption and a block."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, tuple[int, ...]]] = []

    def __call__(self, x, *, time_B, guidance_B, tokens_BL, grid, without=()):
        assert guidance_B.tolist() == [1.0] * len(x)
        self.asked.append((len(x), without))
        value = 3.0 if tokens_BL[0, 0] else 0.0 if without else 1.0
        return torch.full_like(x, value)


def test_guidance_leads_away_from_a_worse_model_between_two_noise_levels() -> None:
    t = torch.tensor([0.05, 0.4, 0.9, 0.5])
    part = {
        "noisy": torch.zeros(4, 2, 3),
        "time": t,
        "grid": (1, 2),
        "guidance": torch.full((4,), 2.0),
        "tokens": torch.ones(4, 5, dtype=torch.long),
    }
    teacher, empty = _Teacher(), torch.zeros(5, dtype=torch.uint8)
    recipe = replace(FLUX, without=(1,), between=(0.1, 0.75))
    target = guided_target(teacher, part, half=3, empty=empty, recipe=recipe)
    np.testing.assert_allclose(target[:, 0, 0], [3.0, 0.0 + 2 * 3.0, 1.0 + 2 * 2.0])
    assert teacher.asked == [(3, ()), (2, (1,)), (1, ())]
    plain = guided_target(_Teacher(), part, half=3, empty=empty, recipe=FLUX)
    np.testing.assert_allclose(plain[:, 0, 0], 1.0 + 2 * 2.0)


def test_a_block_that_is_left_out_is_not_run() -> None:
    models = make_flux(vocabulary=90, seed=0, double=2, single=1)
    predict = Predictor(models, compiled=False)
    given = {
        "time_B": torch.tensor([0.5]),
        "guidance_B": torch.ones(1),
        "tokens_BL": torch.ones(1, 24, dtype=torch.long),
        "grid": (2, 2),
    }
    x = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, less = predict(x, **given), predict(x, **given, without=(1,))
        del models.transformer.transformer_blocks[1]
        shorter = predict(x, **given)
    assert not torch.allclose(whole, less)
    torch.testing.assert_close(less, shorter, rtol=1e-4, atol=1e-5)


def test_a_training_begins_anew_from_its_rounded_average(tmp_path: Path) -> None:
    recipe = replace(FLUX, plan=Plan(steps=2), distill=())
    train_flux(_flux_data(), vocabulary=100, recipe=recipe, state=tmp_path, quiet=True)
    average = read_checkpoint(tmp_path / "flux.safetensors")[0]["average"]
    still = replace(recipe, plan=Plan(steps=3), restart=2, schedule=((0, 0.0, 0.0), (3, 0.0, 0.0)))
    train_flux(_flux_data(), vocabulary=100, recipe=still, state=tmp_path, quiet=True)
    after = read_checkpoint(tmp_path / "flux.safetensors")[0]
    assert torch.equal(after["parameters"], average.bfloat16().float())
    longer = replace(still, plan=Plan(steps=4))
    train_flux(_flux_data(), vocabulary=100, recipe=longer, state=tmp_path, quiet=True)
    assert read_checkpoint(tmp_path / "flux.safetensors")[0]["first"].abs().sum() > after["first"].abs().sum() * 0.5


def _tensors(path: Path) -> dict[str, bytes]:
    return {name: value.contiguous().numpy().tobytes() for name, value in read_checkpoint(path)[0].items()}


def train_flux_here(state: Path, steps: int, *, dies_at: int = 0) -> None:
    torch.set_num_threads(1)
    recipe = replace(FLUX, plan=Plan(steps=steps, checkpoint_seconds=0.0))

    def saved(step: int) -> None:
        if step == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    train_flux(_flux_data(), vocabulary=100, recipe=recipe, state=state, quiet=True, at_checkpoint=saved)


def test_a_killed_base_training_ends_with_the_same_file(tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    train_flux_here(tmp_path / "whole", 12)
    code = "import sys; from pathlib import Path; from tests.miniworld.test_build_chain import train_flux_here as train"
    code += "; train(Path(sys.argv[1]), 12, dies_at=5)"
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(tmp_path / "killed")]
    assert subprocess.run(command, env=environment, cwd=root, check=False).returncode == -signal.SIGKILL
    checkpoint = tmp_path / "killed" / "flux.safetensors"
    assert read_checkpoint(checkpoint)[1]["step"] == 5
    train_flux_here(tmp_path / "killed", 12)
    assert _tensors(tmp_path / "whole" / "flux.safetensors") == _tensors(checkpoint)


def test_captions_of_mini_clip_are_true_of_their_picture() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        shot = sample_shot(rng, fixed={})
        text, told = describe(rng, "woman", shot)
        assert told[0]
        assert "woman" in text
        assert ("neutral expression" in text) <= (shot.expression == "neutral")
