"""Runners of published methods: the whole path, in a process of its own, with small pipelines of the same classes.

The checkouts below stand in for the methods' repositories: their classes have the same parents (diffusers' SDXL, SDXL
with ControlNet, FLUX), the same names and the same calls, and tiny random weights.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from tiny_models import make_tiny_flux, make_tiny_sd

from metalora.configuration import conf_dir
from metalora.core.errors import UserError
from metalora.core.manifest import read_manifest
from metalora.evaluation.baselines import process, sdxl
from metalora.evaluation.baselines.launch import Outcome, launch
from metalora.evaluation.baselines.photomaker import with_trigger
from metalora.tasks import baseline
from metalora.tasks.baseline import drawn_with

FACES = """
import numpy as np

class FaceAnalysis:
    def __init__(self, name="buffalo_l", root=".", providers=None, allowed_modules=None):
        assert providers == ["CPUExecutionProvider"]
    def prepare(self, ctx_id, det_size):
        assert det_size == (640, 640)
    def get(self, image):
        height, width = image.shape[:2]
        blue, green, red = (float(x) for x in image.reshape(-1, 3).mean(0))
        if max(blue, green, red) < 5:
            return []
        embedding = np.array([blue, green, red] * 3 + [1.0] * 3, dtype=np.float32) / 255
        points = np.array([[0.4, 0.4], [0.6, 0.4], [0.5, 0.5], [0.4, 0.6], [0.6, 0.6]]) * [width, height]
        small = {"bbox": np.array([0, 0, 2, 2.0]), "embedding": 0 * embedding, "kps": 0 * points}
        return [small, {"bbox": np.array([1, 1, width, height - 1.0]), "embedding": embedding, "kps": points}]
"""
INSTANTID = """
import numpy as np
import torch
from diffusers import StableDiffusionXLControlNetPipeline
from diffusers.models.attention_processor import AttnProcessor2_0
from PIL import Image

class Adapted(AttnProcessor2_0):
    scale, identity = 0.0, 0.0
    def __call__(self, *arguments, **more):
        return super().__call__(*arguments, **more) * (1 + 20 * Adapted.scale * Adapted.identity)

class StableDiffusionXLInstantIDPipeline(StableDiffusionXLControlNetPipeline):
    def load_ip_adapter_instantid(self, path):
        self.adapter = torch.load(path)["gain"]
        self.unet.set_attn_processor({name: Adapted() for name in self.unet.attn_processors})
    def set_ip_adapter_scale(self, scale):
        Adapted.scale = scale
    def __call__(self, image_embeds, image, **more):
        assert image.size == (48, 48) and more["height"] == more["width"] == 32
        assert more["controlnet_conditioning_scale"] == 0.8 and Adapted.scale == 0.8
        Adapted.identity = float(self.adapter * (image_embeds[0] - image_embeds[2]))  # blue minus red
        return super().__call__(image=image, **more)

def draw_kps(picture, points):
    drawn = np.zeros((picture.height, picture.width, 3), np.uint8)
    for x, y in points.astype(int):
        drawn[y - 2 : y + 3, x - 2 : x + 3] = 255
    return Image.fromarray(drawn)
"""
PHOTOMAKER = """
import torch
from diffusers import StableDiffusionXLPipeline
from insightface.app import FaceAnalysis

class FaceAnalysis2(FaceAnalysis):
    pass

def analyze_faces(analysis, image):
    return analysis.get(image)

class PhotoMakerStableDiffusionXLPipeline(StableDiffusionXLPipeline):
    def load_photomaker_adapter(self, folder, subfolder, weight_name, trigger_word, pm_version):
        assert (subfolder, trigger_word, pm_version) == ("", "img", "v2")
        self.gain = torch.load(f"{folder}/{weight_name}")["gain"]
    def fuse_lora(self):
        with torch.no_grad():
            for parameter in self.unet.parameters():
                parameter.add_(0.05 * self.gain)
    def __call__(self, prompt, input_id_images, id_embeds, start_merge_step, **more):
        assert " img " in f"{prompt} " and start_merge_step == MERGE and id_embeds.shape == (1, 12)
        assert len(input_id_images) == 1 and input_id_images[0].mode == "RGB"
        height, width = (more[side] // self.vae_scale_factor for side in ("height", "width"))
        noise = torch.randn((1, self.unet.config.in_channels, height, width), generator=more.pop("generator"))
        person = 4 * id_embeds[0, :4].reshape(1, 4, 1, 1)
        return super().__call__(prompt.replace(" img", ""), latents=noise + person, **more)
"""
PULID = """
import os
import torch
from diffusers import FluxPipeline

class FluxGenerator:
    def __init__(self, name, device, offload, aggressive_offload, args):
        assert (name, offload, aggressive_offload) == ("flux-dev", False, False)
        assert (args.version, args.fp8) == ("v0.9.1", False)
        assert os.path.isfile(args.pretrained_model) and os.path.isdir("models")  # relative to the checkout
        self.pipe = FluxPipeline.from_pretrained("models/flux").to(device)
        self.pipe.set_progress_bar_config(disable=True)
    def generate_image(self, width, height, num_steps, start_step, guidance, seed, prompt, id_image, id_weight,
                       neg_prompt, true_cfg, timestep_to_start_cfg, max_sequence_length):
        assert (num_steps, guidance, id_weight, true_cfg, timestep_to_start_cfg) == (2, 4.0, 1.0, 1.0, 1)
        generator = torch.Generator().manual_seed(seed + (0 if id_image is None else int(id_image.mean())))
        made = self.pipe(prompt, height=height, width=width, num_inference_steps=num_steps, guidance_scale=guidance,
                         generator=generator, max_sequence_length=max_sequence_length)
        return made.images[0], str(seed), []
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkouts, weights, photos and jobs."""
    folder = tmp_path_factory.mktemp("baselines")
    for name in ("instantid", "photomaker"):
        (folder / name / "insightface").mkdir(parents=True)
        (folder / name / "insightface" / "__init__.py").touch()
        (folder / name / "insightface" / "app.py").write_text(FACES)
    (folder / "instantid" / "pipeline_stable_diffusion_xl_instantid.py").write_text(INSTANTID)
    (folder / "photomaker" / "photomaker").mkdir()
    (folder / "pulid" / "models").mkdir(parents=True)
    (folder / "pulid" / "app_flux.py").write_text(PULID)
    make_tiny_sd(folder / "sdxl", xl=True)
    make_tiny_flux(folder / "pulid" / "models" / "flux")
    make_tiny_sd(folder / "other", xl=True, seed=5)
    from diffusers import ControlNetModel, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder / "sdxl" / "unet")
    halved = {"conditioning_embedding_out_channels": (8, 16)}  # the autoencoder halves a picture, not an eighth of it
    ControlNetModel.from_unet(unet, **halved).save_pretrained(folder / "controlnet")
    lightning = UNet2DConditionModel.from_pretrained(folder / "other" / "unet").state_dict()
    save_file({name: value.contiguous() for name, value in lightning.items()}, folder / "lightning.safetensors")
    torch.save({"gain": torch.tensor(1.0)}, folder / "adapter.bin")
    (folder / "pulid.safetensors").write_bytes(b"weights")
    for name, colour in (("red", (200, 40, 40)), ("blue", (30, 40, 220)), ("nobody", (0, 0, 0))):
        Image.new("RGB", (60, 40), colour).save(folder / f"{name}.png")
    return folder


def jobs_of(place: Path, *people: str, path: Path) -> Path:
    """One prompt and two seeds per person, then the untouched base."""
    lines = []
    for who in (*people, "base"):
        for seed in (0, 1):
            lines.append(
                {
                    "file": f"images/{who}/p-{seed}.png",
                    "method": "base" if who == "base" else "",
                    "identity": who,
                    "class_noun": "man",
                    "reference": "" if who == "base" else str(place / f"{who}.png"),
                    "reference_sha256": "",
                    "prompt_id": "p",
                    "prompt": "a photo of a man on beach",
                    "seed": seed,
                    "benchmark": "b@1",
                }
            )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def settings_of(name: str, place: Path) -> dict:
    """The shipped settings, at the size of the small pipelines and on a CPU."""
    chosen = yaml.safe_load((conf_dir() / "baseline" / f"{name}.yaml").read_text())
    settings = chosen["settings"] | {"device": "cpu", "code": str(place / chosen["runner"]), "generate": 32}
    if chosen["runner"] == "pulid":
        weights = {"adapter": str(place / "pulid.safetensors")}
        return settings | {"weights": weights, "offload": False, "steps": 2, "resize_to": 32, "max_sequence_length": 8}
    weights = {"base": str(place / "sdxl"), "unet": str(place / "lightning.safetensors"), "faces": str(place)}
    weights |= {"adapter": str(place / "adapter.bin"), "controlnet": str(place / "controlnet")}
    small = {"dtype": "float32", "providers": ["CPUExecutionProvider"], "weights": weights, "resize_to": 40}
    small |= {"reference_side": 48} if chosen["runner"] == "instantid" else {}
    return settings | small | ({} if settings["lightning"] else {"steps": 3})


def drawn(name: str, place: Path, out: Path, *, people: tuple[str, ...] = ("red", "blue"), **changes) -> Outcome:
    runner = yaml.safe_load((conf_dir() / "baseline" / f"{name}.yaml").read_text())["runner"]
    settings = settings_of(name, place)
    made_with = changes.pop("made_with", "digest")
    settings |= {"weights": settings["weights"] | changes.pop("weights", {})} | changes
    if runner == "photomaker":
        code = PHOTOMAKER.replace("MERGE", str(settings["start_merge_step"]))
        (place / "photomaker" / "photomaker" / "__init__.py").write_text(code)
    out.mkdir(parents=True, exist_ok=True)
    jobs = jobs_of(place, *people, path=out / "jobs.jsonl")
    python = Path(sys.executable)
    return launch(runner, method=name, python=python, jobs=jobs, out=out, settings=settings, made_with=made_with)


def pixels(out: Path, who: str, seed: int) -> np.ndarray:
    return np.asarray(Image.open(out / f"images/{who}/p-{seed}.png"), dtype=np.int16)


BASES = {"instantid_sdxl": "SDXL", "instantid_lightning": "SDXL-Lightning", "pulid": "FLUX.1-dev"}
BASES |= {"photomaker_sdxl": "SDXL", "photomaker_lightning": "SDXL-Lightning"}
DRAWN_AT = {"pulid": ""}
"""Everything but PuLID draws here at another size than is scored, which makes another base."""


@pytest.fixture(scope="module")
def finished(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
    """What a baseline has drawn: red, blue and the base (PhotoMaker is asked for nobody too); a process each, once."""
    there: dict[str, Outcome] = {}

    def of(name: str) -> Outcome:
        if name not in there:
            people = ("red", "blue", "nobody") if name == "photomaker_sdxl" else ("red", "blue")
            there[name] = drawn(name, place, tmp_path_factory.mktemp(name), people=people)
            assert there[name].skipped is None
        return there[name]

    return of


@pytest.mark.parametrize("name", BASES)
def test_a_baselines_whole_path(name: str, finished: Callable[[str], Outcome]) -> None:
    out = finished(name).images
    records = read_manifest(out)
    assert [record.method for record in records] == [name] * 4 + ["base"] * 2
    side = 32 if name == "pulid" else 40
    for record in records:
        assert record.size == (side, side) == pixels(out, record.identity, record.seed).shape[:2]
        assert (record.base_model, record.benchmark) == (BASES[name] + DRAWN_AT.get(name, " at 32 px"), "b@1")
        assert record.seconds is not None and record.seconds > 0 and (record.peak_memory_mb or 0) > 50
        assert len(record.weights_sha256) == (0 if record.method == "base" else 64)
    assert records[0].guidance == {"S": 5.0, "L": 1.2, "F": 4.0}["L" if "light" in name else BASES[name][0]]
    red, blue, base = (pixels(out, who, 0) for who in ("red", "blue", "base"))
    assert np.abs(red - blue).max() > 2 and np.abs(red - base).max() > 2  # the person shows
    assert np.abs(red - pixels(out, "red", 1)).max() > 2  # and so does the seed


def test_the_base_is_untouched_by_the_method(place: Path, finished: Callable[[str], Outcome]) -> None:
    """The same pictures as stock diffusers makes, though people were drawn just before."""
    from diffusers import StableDiffusionXLPipeline

    settings = settings_of("instantid_sdxl", place)
    pipe = sdxl.load(StableDiffusionXLPipeline, settings)
    for seed in (0, 1):
        expected = pipe(prompt="a photo of a man on beach", **sdxl.common(settings, {"seed": seed})).images[0]
        found = pixels(finished("instantid_sdxl").images, "base", seed)
        assert np.abs(np.asarray(sdxl.finished(expected, settings), dtype=np.int16) - found).max() <= 1


def test_a_cut_run_continues_with_what_is_missing(
    place: Path, finished: Callable[[str], Outcome], tmp_path: Path
) -> None:
    whole, out = finished("pulid").images, tmp_path / "cut"
    shutil.copytree(whole, out)
    lines = (whole / "manifest.jsonl").read_text().splitlines()
    (out / "manifest.jsonl").write_text("\n".join(lines[:2]) + '\n{"file": "images/ba')
    (out / "images/red/p-1.png").unlink()
    kept = (out / "images/red/p-0.png").stat().st_mtime_ns
    assert drawn("pulid", place, out).skipped is None
    assert (out / "images/red/p-0.png").stat().st_mtime_ns == kept
    assert {record.file for record in read_manifest(out)} == {json.loads(line)["file"] for line in lines}
    for who, seed in (("red", 1), ("blue", 0), ("base", 1)):
        assert np.array_equal(pixels(whole, who, seed), pixels(out, who, seed))


@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [
        (
            "instantid_sdxl",
            {"code": None},
            "a checkout of https://github.com/instantX-research/InstantID, code: no",
        ),
        ("instantid_sdxl", {"weights": {"controlnet": "/nowhere"}}, "weights.controlnet: there is no /nowhere"),
        ("photomaker_sdxl", {"weights": {"adapter": None}}, "photomaker-v2.bin, weights.adapter: no path was given"),
        ("photomaker_lightning", {"weights": {"unet": None}}, "SDXL-Lightning's U-Net, weights.unet: no path"),
        ("instantid_lightning", {"weights": {"base": "/nowhere"}}, "SDXL, weights.base=/nowhere"),
        ("pulid", {"weights": {"adapter": "/nowhere"}}, "pulid_flux_v0.9.1.safetensors, weights.adapter: there is no"),
    ],
)
def test_what_is_absent_is_a_skip_with_its_reason(
    name: str, changes: dict, why: str, place: Path, tmp_path: Path
) -> None:
    outcome = drawn(name, place, tmp_path, **changes)
    assert outcome.skipped is not None and why in outcome.skipped
    assert not (tmp_path / "images").exists() and not (tmp_path / "manifest.jsonl").exists()


def test_a_checkout_without_the_code_is_a_skip(place: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    outcome = drawn("pulid", place, tmp_path / "out", code=str(tmp_path / "empty"))
    assert outcome.skipped == "No module named 'app_flux'"


def test_no_environment_is_a_skip_and_a_failure_is_none(place: Path, tmp_path: Path) -> None:
    jobs = jobs_of(place, "nobody", path=tmp_path / "jobs.jsonl")
    more = {"method": "pulid", "jobs": jobs, "out": tmp_path, "settings": settings_of("pulid", place), "made_with": ""}
    outcome = launch("pulid", python=Path("/nowhere/python"), **more)
    assert outcome.skipped == "the interpreter of its environment, baseline.python: there is no /nowhere/python"
    with pytest.raises(UserError, match="unknown runner"):
        launch("dreambooth", python=None, **more)
    python = tmp_path / "python"  # something else that ends well
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    with pytest.raises(UserError, match=r"says it is done, but 4 of 4 images are not there.*key: baseline\.python"):
        launch("pulid", python=python, **more)


def test_a_photo_without_a_face_is_left_out_and_told(place: Path, finished: Callable[[str], Outcome]) -> None:
    outcome = finished("photomaker_sdxl")
    why = f"the method finds no face in {place / 'nobody.png'}"
    assert outcome.left_out == tuple(f"images/nobody/p-{seed}.png: {why}" for seed in (0, 1))
    assert {record.identity for record in read_manifest(outcome.images)} == {"red", "blue", "base"}


SOMETIMES = """
from PIL import Image

class FluxGenerator:
    def __init__(self, name, device, offload, aggressive_offload, args):
        pass
    def generate_image(self, *, seed, id_image, **more):
        print("asked", flush=True)
        if FAILS:
            raise ValueError(f"no such WHY")
        return Image.new("RGB", (32, 32)), "", []
"""


def test_an_image_that_was_made_with_something_else_is_drawn_again(place: Path, tmp_path: Path) -> None:
    code, out = tmp_path / "code", tmp_path / "out"
    code.mkdir()
    (code / "app_flux.py").write_text(SOMETIMES.replace("FAILS", "False"))

    def asked(**changes: str) -> int:
        (out / "runner.log").unlink(missing_ok=True)
        assert drawn("pulid", place, out, code=str(code), **changes).skipped is None
        assert len(read_manifest(out)) == 6
        return (out / "runner.log").read_text().splitlines().count("asked")

    assert [asked(), asked(), asked(made_with="other weights"), asked(made_with="other weights")] == [6, 0, 6, 0]
    lines = (out / "manifest.jsonl").read_text().replace("on beach", "in a park", 1)
    (out / "manifest.jsonl").write_text(lines)
    assert asked(made_with="other weights") == 1  # drawn for other words than the job's


def test_a_manifest_that_cannot_be_rewritten_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = tmp_path / "jobs.jsonl"
    made = [{"file": f"{k}.png", "method": "", "made_with": "x"} for k in range(3)]
    jobs.write_text("".join(json.dumps(line) + "\n" for line in made))
    (tmp_path / "0.png").touch()
    (tmp_path / "manifest.jsonl").write_text(json.dumps(made[0]) + "\n")
    request = {"jobs": str(jobs), "out": str(tmp_path), "settings": {}, "made_with": "x", "method": "m"}
    (tmp_path / "request.json").write_text(json.dumps(request))
    monkeypatch.setattr(sys, "argv", ["runner", str(tmp_path / "request.json")])

    def cut(path: Path, *_: object, **__: object) -> None:
        path.open("w").close()
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", cut)
    with pytest.raises(OSError, match="no space"):
        process.run(lambda settings: lambda job: (Image.new("RGB", (4, 4)), {}))
    assert json.loads((tmp_path / "manifest.jsonl").read_text()) == made[0]


def settings_on_disk(folder: Path) -> dict:
    """Settings whose weights and checkout lie in a folder."""
    (folder / "base" / "unet").mkdir(parents=True)
    (folder / "base" / "unet" / "model.safetensors").write_bytes(b"base")
    (folder / "adapter.bin").write_bytes(b"adapter")
    weights = {"base": str(folder / "base"), "adapter": str(folder / "adapter.bin"), "faces": None, "unet": "some/id"}
    return {"weights": weights, "commit": "0" * 40, "code": None, "device": "cuda", "steps": 4}


def test_weights_count_by_their_content_not_by_their_place(tmp_path: Path) -> None:
    def found(folder: Path, **changes: str) -> dict:
        settings = settings_on_disk(folder) | changes
        (folder / "base" / ".cache").mkdir()
        (folder / "base" / ".cache" / "when").write_text(folder.name)  # what a downloader keeps beside them
        return drawn_with(settings, cache=tmp_path / "cache", progress=lambda stage, done, total: None)

    one = found(tmp_path / "one")
    assert one["weights"]["unet"] == "some/id" and one["weights"]["faces"] is None and "code" not in one
    assert found(tmp_path / "two", device="cpu") == one
    changed = settings_on_disk(tmp_path / "three")
    (tmp_path / "three" / "base" / "unet" / "model.safetensors").write_bytes(b"other base")
    other = drawn_with(changed, cache=tmp_path / "cache", progress=lambda stage, done, total: None)
    assert {name for name in one["weights"] if one["weights"][name] != other["weights"][name]} == {"base"}


def test_weights_are_read_once_until_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, read = settings_on_disk(tmp_path / "one"), []
    monkeypatch.setattr(baseline, "digest", lambda path: read.append(path.name) or f"{len(read)}")
    for _ in range(2):
        drawn_with(settings, cache=tmp_path / "cache", progress=lambda stage, done, total: None)
    assert read == ["base", "adapter.bin"]
    (tmp_path / "one" / "adapter.bin").write_bytes(b"retrained")
    found = drawn_with(settings, cache=tmp_path / "cache", progress=lambda stage, done, total: None)
    assert read == ["base", "adapter.bin", "adapter.bin"] and found["weights"]["adapter"] == "3"


def test_a_checkout_at_another_commit_is_refused(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        person = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(
            ["git", "-C", str(code), *person, *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    def commit(**changes: str | None) -> str | None:
        given = settings | {"code": str(code)} | changes
        return drawn_with(given, cache=tmp_path / "cache", progress=lambda stage, done, total: None)["commit"]

    settings, code = settings_on_disk(tmp_path / "one"), tmp_path / "code"
    code.mkdir()
    assert commit() == settings["commit"]  # without git's folder nobody can tell
    git("init", "--quiet")
    (code / "app.py").touch()
    git("add", "app.py")
    git("commit", "--quiet", "-m", "one")
    head = git("rev-parse", "HEAD")
    with pytest.raises(UserError, match="not at the commit that the settings name") as caught:
        commit()
    assert caught.value.got == head and settings["commit"] in caught.value.expected
    assert caught.value.key == "baseline.settings.code, baseline.settings.commit"
    assert commit(commit=head) == commit(commit=None) == head


@pytest.mark.parametrize(
    ("fails", "why", "asked", "told"),
    [
        ("True", "height", 3, "got stopped: the first 3 images all fail: no such height"),
        ("True", "height {seed}", 6, "got 6 of 6 images cannot be drawn, first images/red/p-0.png: no such height 0"),
        ("id_image is not None and id_image[0, 0, 0] < 99", "x", 6, "got 2 of 6 images .*, first images/blue/p-0.png"),
        ("id_image is None or id_image[0, 0, 0] < 99", "x", 6, "got 4 of 6 images .*, first images/blue/p-0.png: no"),
    ],
)
def test_a_fault_that_is_no_images_own_stops_at_once(
    place: Path, tmp_path: Path, fails: str, why: str, asked: int, told: str
) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "app_flux.py").write_text(SOMETIMES.replace("FAILS", fails).replace("WHY", why))
    with pytest.raises(UserError, match=f"status 1; .*{told}"):
        drawn("pulid", place, tmp_path / "out", code=str(tmp_path / "code"))
    assert (tmp_path / "out" / "runner.log").read_text().splitlines().count("asked") == asked


def test_nothing_beside_this_package_is_seen_from_the_other_environment(place: Path, tmp_path: Path) -> None:
    """Our site-packages and repository must not leak into a method's own environment."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "app_flux.py").write_text(
        "import json, os, sys\n"
        "ours = [path for path in sys.path if os.path.exists(path + '/conftest.py')]\n"
        "alone = os.environ['PYTHONPATH']\n"
        "raise ImportError(json.dumps([*ours, alone, os.listdir(alone)]))\n"
    )
    outcome = drawn("pulid", place, tmp_path / "out", code=str(code))
    assert outcome.skipped is not None
    *others, path, seen = json.loads(outcome.skipped)
    assert others == [] and seen == ["metalora"] and path != str(Path.cwd())


def test_the_trigger_stands_behind_the_class_noun_once() -> None:
    assert with_trigger("A man and a man in a manor.", "man") == "A man img and a man in a manor."
    with pytest.raises(ValueError, match="no woman"):
        with_trigger("a photo of a man", "woman")


def test_fixed_sigmas_are_what_a_sampler_goes_through() -> None:
    from diffusers import EulerDiscreteScheduler

    sigmas = yaml.safe_load((conf_dir() / "baseline/instantid_lightning.yaml").read_text())["settings"]["sigmas"]
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    )
    sdxl.fix_sigmas(scheduler, sigmas)
    scheduler.set_timesteps(4, device="cpu")
    assert scheduler.sigmas.tolist() == pytest.approx([14.6146, 2.9183, 0.9324, 0.0292, 0.0])
    assert scheduler.timesteps[0].item() == pytest.approx(999, abs=0.5) and scheduler.timesteps[-1].item() < 1
    assert (scheduler.timesteps.diff() < 0).all()
    sample = torch.ones(1, 1, 2, 2) * scheduler.init_noise_sigma
    for step, time in enumerate(scheduler.timesteps):  # a model that sees the noise exactly leaves 1 - it
        clean = torch.full_like(sample, 0.25)
        noise = (sample - clean) / sigmas[step]
        sample = scheduler.step(noise, time, sample).prev_sample
    assert torch.allclose(sample, torch.full_like(sample, 0.25), atol=1e-4)


PAPER = {
    "pulid": {
        "version": "v0.9.1",
        "steps": 20,
        "guidance": 4.0,
        "id_weight": 1.0,
        "true_cfg": 1.0,
        "time_to_start_cfg": 1,
    }
    | {"max_sequence_length": 128, "generate": 1024, "resize_to": 1024},
    "instantid_sdxl": {"steps": 50, "guidance": 5.0, "generate": 1016, "resize_to": 1024, "ip_adapter_scale": 0.8}
    | {"controlnet_conditioning_scale": 0.8, "lightning": False},
    "instantid_lightning": {"steps": 4, "guidance": 1.2, "sigmas": [14.6146, 2.9183, 0.9324, 0.0292, 0.0]}
    | {"generate": 1016, "resize_to": 1024, "lightning": True},
    "photomaker_sdxl": {"steps": 50, "guidance": 5.0, "timestep_spacing": "trailing", "start_merge_step": 10},
    "photomaker_lightning": {"steps": 4, "guidance": 1.2, "timestep_spacing": "trailing", "start_merge_step": 0},
}


@pytest.mark.parametrize("name", PAPER)
def test_settings_are_appendix_fs(name: str) -> None:
    chosen = yaml.safe_load((conf_dir() / "baseline" / f"{name}.yaml").read_text())
    settings = chosen["settings"]
    assert {key: settings[key] for key in PAPER[name]} == PAPER[name]
    assert chosen["method"] == name and len(settings["commit"]) == 40
    if name != "pulid":
        assert settings["dtype"] == "bfloat16" and settings["negative_prompt"].startswith(
            "flaws in the eyes, flaws in the"
        )
        assert settings["negative_prompt"].endswith("deformed eyeballs, cross-eyed, blurry")
    assert {path.stem for path in (conf_dir() / "baseline").glob("*.yaml")} == set(PAPER)
