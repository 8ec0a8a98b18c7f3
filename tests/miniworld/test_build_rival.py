"""The tuning-free rival's data and training: reproducible parts, a cut run equals the uncut one, the fast forward pass
equals the hooks that images are drawn with."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metalora.adapters.artifacts import file_sha256, read_tensors
from metalora.adapters.face_adapter import FaceRoute, load_face_adapter
from metalora.backbones.flux import load_flux
from metalora.core.noise import generator
from metalora.miniworld.build.flat import gather
from metalora.miniworld.build.flux_data import image_ids, pack
from metalora.miniworld.build.forward import rotary, velocity
from metalora.miniworld.build.loop import Plan, read_checkpoint
from metalora.miniworld.build.rival import (
    RIVAL,
    WEIGHTS,
    RivalRecipe,
    Worker,
    draw_batch,
    export_rival,
    fresh_adapter,
    train_rival,
)
from metalora.miniworld.build.rival_data import SIDE, load_data, shots_of, write_data
from metalora.miniworld.phd import write_people
from metalora.miniworld.renderer import render

SMALL: RivalRecipe = replace(
    RIVAL, plan=Plan(steps=4, warmup=0.5), people=2, photos=2, captions=2, batch=4, workers=1, compile=False
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_data(tmp_path_factory.mktemp("data"), people=2, photos=2, captions=2, seed=0, weights=WEIGHTS)


def test_the_people_and_their_moments_are_those_of_the_stage1_folders(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    write_people(tmp_path / "man", "stage1", "man", count=1, photos=1)
    photo = shots_of(0, photos=1)[0]
    assert photo.person.key == "stage1-man-0000"
    picture = render([photo.person], [photo.shot], height=SIDE, width=SIDE)[0]
    assert np.array_equal(picture, np.asarray(Image.open(tmp_path / "man" / photo.person.key / "00.png")))


def test_a_part_is_reproducible_and_not_made_twice(parts: list[Path], tmp_path: Path) -> None:
    again = write_data(tmp_path, people=2, photos=2, captions=2, seed=0, weights=WEIGHTS)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in parts]
    stamp = again[0].stat().st_mtime_ns
    write_data(tmp_path, people=2, photos=2, captions=2, seed=0, weights=WEIGHTS)
    assert again[0].stat().st_mtime_ns == stamp
    data = load_data(parts)
    assert data.latents.shape == (4, 8, 16, 16)
    assert data.patches.shape == (4, 64, 128)
    assert torch.allclose(data.embeddings.float().norm(dim=-1), torch.ones(4), atol=1e-2)
    own = data.embeddings.float() @ data.embeddings.float().T
    assert own[0, 1] > own[0, 2]  # two photos of one person are nearer than two people
    assert own[2, 3] > own[1, 3]


def test_batches_depend_on_seed_step_and_rank_alone(parts: list[Path]) -> None:
    data = load_data(parts)
    first, again = (draw_batch(data, step=3, rank=0, recipe=SMALL) for _ in range(2))
    other = draw_batch(data, step=4, rank=0, recipe=SMALL)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["noisy"], other["noisy"])
    # x_t = (1 - t) x_0 + t noise and target = noise - x_0 give the clean latents back
    clean = first["noisy"] - first["time"][:, None, None] * first["target"]
    stored = pack(data.latents.float())
    assert all(bool((stored - picture).abs().amax((1, 2)).min() < 1e-4) for picture in clean)


def test_a_cut_run_ends_where_an_uncut_one_does(parts: list[Path], tmp_path: Path) -> None:
    for name in ("uncut", "cut"):
        (tmp_path / name).mkdir()
    train_rival(parts, recipe=SMALL, state=tmp_path / "uncut", quiet=True)
    train_rival(parts, recipe=SMALL, state=tmp_path / "cut", quiet=True, until=2)
    half = read_checkpoint(tmp_path / "cut" / "rival.safetensors")
    assert half[1]["step"] == 2
    summary = train_rival(parts, recipe=SMALL, state=tmp_path / "cut", quiet=True)
    assert (summary["steps"], summary["samples_seen"]) == (4, 16)
    uncut, cut = (read_checkpoint(tmp_path / name / "rival.safetensors")[0] for name in ("uncut", "cut"))
    assert all(torch.equal(uncut[name], cut[name]) for name in uncut)
    assert not torch.equal(half[0]["parameters"], cut["parameters"])


@pytest.mark.slow
def test_two_processes_average_their_gradients(parts: list[Path], tmp_path: Path) -> None:
    recipe, data = replace(SMALL, workers=2, plan=Plan(steps=1)), load_data(parts)
    train_rival(parts, recipe=recipe, state=tmp_path, quiet=True)
    moment = read_checkpoint(tmp_path / "rival.safetensors")[0]["first"]
    state = {name: torch.zeros_like(moment) for name in ("parameters", "first", "second")}
    state |= {"gradients": torch.zeros(2, len(moment)), "report": torch.zeros(2, 2), "computed": torch.zeros(2)}
    for rank in (0, 1):
        barrier = threading.Barrier(1)  # nobody is waited for: each leaves its gradient
        worker = Worker(rank, state=state, data=data, recipe=recipe, weights=WEIGHTS, barrier=barrier)
        gather({"adapter": worker.adapter}, worker.slots, state["parameters"], gradients=False)
        worker.step(0)
    mean = state["gradients"].mean(0)
    clipped = mean * min(1.0, recipe.clip / (float(mean.norm()) + 1e-6))
    assert torch.allclose(moment, 0.1 * clipped, atol=1e-7)
    assert not torch.equal(state["gradients"][0], state["gradients"][1])


def test_the_exported_file_draws_what_was_trained(parts: list[Path], tmp_path: Path) -> None:
    data = load_data(parts)
    trained = train_rival(parts, recipe=SMALL, state=tmp_path, quiet=True)
    path = export_rival(
        tmp_path / "ip", recipe=SMALL, state=tmp_path, data=data, trained=trained, weights=WEIGHTS, command="here"
    )
    assert path.stat().st_size < 3e6
    backbone = load_flux(WEIGHTS / "flux", name="mini", max_text_tokens=24)
    adapter = load_face_adapter(path, backbone_fingerprint=backbone.fingerprint)
    with torch.no_grad():  # four steps change little: make it a lot
        for place, block in enumerate(adapter.blocks):
            block.to_out.weight.normal_(std=0.3, generator=generator("out", place))  # type: ignore[union-attr]
    tokens = adapter.tokens(data.embeddings[:1].float(), data.patches[:1].float())
    text = backbone.encode_text(["a photo of a man", "a pencil drawing of a man on a beach"])
    x, t, transformer = torch.randn(2, 8, 16, 16, generator=generator("x")), torch.tensor([0.3, 0.8]), backbone.denoiser
    route = FaceRoute(transformer, adapter, tokens_1TW=tokens, scale=1.0)
    with torch.no_grad():
        drawn = backbone.predict(x, t_B=t, text=text, guidance=1.0)
        route.detach()
        base = backbone.predict(x, t_B=t, text=text, guidance=1.0)
        fast = velocity(
            transformer,
            pack(x),
            time_B=t,
            guidance_B=torch.ones(2),
            text_BTW=text.tokens_BLD,
            pooled_BW=text.pooled_BP,
            rotary_LD=rotary(transformer, text_tokens=24, image_ids=image_ids(8, 8)),
            cross=lambda place, hidden: list(adapter.blocks)[place](hidden, tokens.expand(2, -1, -1)),
        )
    assert torch.allclose(pack(drawn), fast, atol=1e-4)
    assert not torch.allclose(drawn, base, atol=1e-2)


def test_a_training_may_begin_with_the_adapter_of_an_earlier_base(parts: list[Path], tmp_path: Path) -> None:
    shipped = WEIGHTS / "ip_adapter" / "model.safetensors"
    tensors, told = read_tensors(shipped, what="face adapter")
    still = replace(SMALL, plan=Plan(steps=1), rate=0.0)
    trained = train_rival(parts, recipe=still, state=tmp_path, begin=shipped, quiet=True)
    path = export_rival(
        tmp_path / "ip",
        recipe=still,
        state=tmp_path,
        data=load_data(parts),
        trained=trained,
        weights=WEIGHTS,
        command="here",
        begin=shipped,
    )
    again, header = read_tensors(path, what="face adapter")
    assert all(torch.equal(again[name], value) for name, value in tensors.items())
    assert int(header["iterations"]) == int(told["iterations"]) + 1
    begun = json.loads((path.parent / "provenance.json").read_text())["begun_with"]
    assert begun == {
        "sha256": file_sha256(shipped),
        "iterations": told["iterations"],
        "backbone_fingerprint": told["backbone_fingerprint"],
    }


def test_a_fresh_adapter_of_the_base_is_small_and_the_same_for_a_seed(parts: list[Path]) -> None:
    data, transformer = load_data(parts), load_flux(WEIGHTS / "flux", name="mini", max_text_tokens=24).denoiser
    one, two = (fresh_adapter(SMALL, transformer, data).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert sum(value.numel() for value in one.values()) * 2 < 3e6  # bytes in bf16
