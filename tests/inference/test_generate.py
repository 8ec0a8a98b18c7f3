"""Images from LoRA files: what they depend on, what stock diffusers makes of the same file, and how a run continues."""

import json

import numpy as np
import pytest
import torch
from diffusers import FluxImg2ImgPipeline, FluxInpaintPipeline
from PIL import Image

from metalora.adapters.artifacts import save_lora
from metalora.core.contracts import LoraFile
from metalora.core.errors import UserError
from metalora.core.manifest import read_manifest
from metalora.inference.generate import GenerationJob, generate, image_noise
from metalora.inference.start import load_start

SIZE = (16, 24)
SETTING = {"steps": 3, "guidance": 3.5, "size": SIZE}
PROMPTS = {"frontal-00": "a photo of a man", "style-00": "a pencil drawing of a man"}


@pytest.fixture
def loras(tiny_backbone, tmp_path):
    """Three people's files: two of rank 1 and one of rank 2, strong enough to be seen."""
    paths = {}
    for number, (identity, rank) in enumerate((("ann", 1), ("bob", 1), ("cid", 2))):
        draw = torch.Generator().manual_seed(number)
        down, up = {}, {}
        for name, layer in tiny_backbone.target_layers().items():
            down[name] = torch.randn(rank, layer.in_features, generator=draw) * 0.5
            up[name] = torch.randn(layer.out_features, rank, generator=draw) * 0.5
        paths[identity] = tmp_path / f"{identity}.safetensors"
        save_lora(paths[identity], LoraFile(down, up, {}))
    return paths


def job(identity, lora, *, rank=1, prompt_id="frontal-00", seed=0, method="lora", iterations=5):
    if lora is None:
        method, rank, iterations = "base", 0, 0
    return GenerationJob(identity, "man", method, rank, iterations, lora, prompt_id, PROMPTS[prompt_id], seed)


@pytest.fixture
def jobs(loras):
    made = [job("man", None, prompt_id=p, seed=s) for p in PROMPTS for s in (0, 1)]
    for identity, rank in (("ann", 1), ("cid", 2), ("bob", 1)):
        made += [job(identity, loras[identity], rank=rank, prompt_id=p, seed=s) for p in PROMPTS for s in (0, 1)]
    return made


def pixels(folder, record):
    with Image.open(folder / record.file) as image:
        return np.asarray(image, dtype=np.int16)


def test_an_image_does_not_depend_on_its_batch(tiny_backbone, jobs, tmp_path):
    together = generate(tiny_backbone, jobs, **SETTING, batch_size=5, out=tmp_path / "five")
    alone = generate(tiny_backbone, jobs[::-1], **SETTING, batch_size=1, out=tmp_path / "one")[::-1]
    assert together == alone
    for record in together:
        difference = np.abs(pixels(tmp_path / "five", record) - pixels(tmp_path / "one", record))
        assert pixels(tmp_path / "five", record).shape == (*SIZE, 3)
        assert difference.max() <= 1  # rounding to 8 bits

    def of(identity, prompt_id, seed):
        record = next(r for r in together if (r.identity, r.prompt_id, r.seed) == (identity, prompt_id, seed))
        return pixels(tmp_path / "five", record)

    base = of("man", "frontal-00", 0)
    for other in (of("ann", "frontal-00", 0), of("cid", "frontal-00", 0), of("man", "frontal-00", 1)):
        assert np.abs(other - base).mean() > 1
    assert np.abs(of("ann", "frontal-00", 0) - of("bob", "frontal-00", 0)).mean() > 1
    assert np.abs(of("ann", "frontal-00", 0) - of("ann", "style-00", 0)).mean() > 1


def test_noise_belongs_to_the_prompt_and_the_seed(tiny_backbone, tmp_path):
    one, other = (
        GenerationJob("man", "man", "base", 0, 0, None, prompt_id, PROMPTS["frontal-00"], 0) for prompt_id in ("a", "b")
    )
    first, second = generate(tiny_backbone, [one, other], **SETTING, batch_size=2, out=tmp_path)
    assert np.abs(pixels(tmp_path, first) - pixels(tmp_path, second)).mean() > 1


@pytest.mark.parametrize(("identity", "rank"), [("ann", 1), ("cid", 2)])
def test_stock_diffusers_makes_the_same_image_of_the_file(tiny_backbone, loras, tmp_path, identity, rank):
    jobs = [
        job("bob", loras["bob"], seed=3),
        job(identity, loras[identity], rank=rank, seed=3),
        job("man", None, seed=3),
    ]
    records = generate(tiny_backbone, jobs, **SETTING, batch_size=4, out=tmp_path / "out")
    pipe = tiny_backbone.pipeline()
    pipe.set_progress_bar_config(disable=True)

    def stock():
        made = pipe(
            PROMPTS["frontal-00"],
            generator=image_noise(seed=3, prompt_id="frontal-00"),
            num_inference_steps=3,
            guidance_scale=3.5,
            height=SIZE[0],
            width=SIZE[1],
            max_sequence_length=tiny_backbone.max_text_tokens,
        ).images[0]
        return np.asarray(made, dtype=np.int16)

    assert np.abs(pixels(tmp_path / "out", records[2]) - stock()).max() <= 1
    pipe.load_lora_weights(str(loras[identity].parent), weight_name=loras[identity].name)
    assert np.abs(pixels(tmp_path / "out", records[1]) - stock()).max() <= 1
    assert np.abs(pixels(tmp_path / "out", records[2]) - stock()).mean() > 1


def test_the_backbone_is_left_as_it_was(tiny_backbone, jobs, tmp_path):
    base = [item for item in jobs if item.lora is None]
    before = generate(tiny_backbone, base, **SETTING, batch_size=4, out=tmp_path / "before")
    generate(tiny_backbone, jobs, **SETTING, batch_size=4, out=tmp_path / "loras")
    generate(tiny_backbone, base, **SETTING, batch_size=4, out=tmp_path / "after")
    for record in before:
        assert np.array_equal(pixels(tmp_path / "before", record), pixels(tmp_path / "after", record))


class Spy:
    """Counts the images a run makes, and can stop it."""

    def __init__(self, stop_at=None):
        self.stop_at, self.seen = stop_at, []

    def __call__(self, stage, done, total):
        assert stage == "generate"
        self.seen.append((done, total))
        if self.stop_at is not None and done >= self.stop_at:
            raise KeyboardInterrupt


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.png")}


def test_a_cut_run_continues_and_a_finished_one_does_nothing(tiny_backbone, jobs, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        generate(tiny_backbone, jobs, **SETTING, batch_size=3, out=out, progress=Spy(stop_at=6))
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert 6 <= len(made) < len(jobs)
    with (out / "manifest.jsonl").open("a") as manifest:
        manifest.write('{"file": "images/half')  # killed inside a line
    spy = Spy()
    records = generate(tiny_backbone, jobs, **SETTING, batch_size=3, out=out, progress=spy)
    assert spy.seen[0] == (len(made), len(jobs)) and spy.seen[-1] == (len(jobs), len(jobs))
    assert all(path.stat().st_mtime_ns == when for path, when in made.items())
    assert tuple(read_manifest(out)) == records
    manifest = (out / "manifest.jsonl").read_bytes()

    spy = Spy()
    assert generate(tiny_backbone, jobs, **SETTING, batch_size=3, out=out, progress=spy) == records
    assert spy.seen == [(len(jobs), len(jobs))]
    assert (out / "manifest.jsonl").read_bytes() == manifest


def test_what_changed_or_is_missing_is_made_again(tiny_backbone, jobs, loras, tmp_path):
    out = tmp_path / "out"
    records = generate(tiny_backbone, jobs, **SETTING, batch_size=4, out=out)
    lost = out / records[0].file
    lost.unlink()
    loras["ann"].write_bytes(loras["bob"].read_bytes())  # ann was trained again
    spy = Spy()
    again = generate(tiny_backbone, jobs, **SETTING, batch_size=4, out=out, progress=spy)
    assert spy.seen[0] == (len(jobs) - 1 - 4, len(jobs))
    assert lost.is_file()
    ann, bob = (next(r for r in again if r.identity == name) for name in ("ann", "bob"))
    assert np.array_equal(pixels(out, ann), pixels(out, bob))
    assert ann.lora_sha256 == bob.lora_sha256

    spy = Spy()
    generate(tiny_backbone, jobs, **(SETTING | {"guidance": 2.0}), batch_size=4, out=out, progress=spy)
    assert spy.seen[0] == (0, len(jobs))


def test_another_request_in_the_same_folder_is_added(tiny_backbone, jobs, tmp_path):
    out = tmp_path / "out"
    first = generate(tiny_backbone, jobs[:4], **SETTING, batch_size=4, out=out)
    second = generate(tiny_backbone, jobs[4:8], **SETTING, batch_size=4, out=out)
    assert tuple(read_manifest(out)) == first + second


def test_a_folder_that_keeps_what_it_has_takes_others_beside_it(tiny_backbone, jobs, tmp_path):
    first = generate(tiny_backbone, jobs[:2], **SETTING, batch_size=2, out=tmp_path / "out", overwrite=False)
    generate(tiny_backbone, jobs[:4], **SETTING, batch_size=2, out=tmp_path / "out", overwrite=False)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert len(read_manifest(tmp_path / "out")) == 4
    with pytest.raises(UserError, match=f"other images under the same names.*got {first[0].file}.*key: out"):
        generate(tiny_backbone, jobs[:1], **SETTING | {"steps": 2}, batch_size=2, out=tmp_path / "out", overwrite=False)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_manifest_says_how_each_image_was_made(tiny_backbone, jobs, tmp_path):
    records = generate(tiny_backbone, jobs, **SETTING, batch_size=9, out=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == [record.file for record in records]
    last = lines[-1]
    assert (last["identity"], last["prompt_id"], last["seed"], last["rank"]) == ("bob", "style-00", 1, 1)
    assert last["file"] == "images/bob/lora-r1-000005/style-00-1.png"
    assert last["base_model"].startswith("tiny@") and last["size"] == [16, 24] and last["steps"] == 3
    assert lines[0]["lora"] == "" and lines[0]["method"] == "base"


def test_strength_scales_the_update(tiny_backbone, loras, tmp_path):
    ann, base = job("ann", loras["ann"]), job("man", None)
    (plain,) = generate(tiny_backbone, [base], **SETTING, batch_size=1, out=tmp_path / "base")
    made = {}
    for strength in (0.0, 0.1, 1.0):
        out = tmp_path / str(strength)
        (record,) = generate(tiny_backbone, [ann], **SETTING, batch_size=1, out=out, strength=strength)
        assert record.strength == strength
        made[strength] = np.abs(pixels(out, record) - pixels(tmp_path / "base", plain)).mean()
    assert made[0.0] < 0.5 < made[0.1] < made[1.0]
    spy = Spy()  # another strength is another image
    generate(tiny_backbone, [ann], **SETTING, batch_size=1, out=tmp_path / "1.0", strength=0.5, progress=spy)
    assert spy.seen[0] == (0, 1)


@pytest.fixture
def picture(tmp_path):
    """A photo of other proportions than the images to make, and its mask: white on the right half."""
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 256, (40, 80, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    mask = np.zeros((40, 80), dtype=np.uint8)
    mask[:, 40:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return tmp_path / "photo.png", tmp_path / "mask.png"


@pytest.mark.parametrize(("masked", "kind"), [(False, FluxImg2ImgPipeline), (True, FluxInpaintPipeline)])
def test_drawing_over_a_picture_is_stock_diffusers(
    tiny_backbone, tiny_flux_dir, loras, picture, tmp_path, masked, kind
):
    start = load_start(picture[0], picture[1] if masked else None, size=SIZE, denoise=0.7, steps=3)
    assert start.image.size == (24, 16) and (not masked or np.asarray(start.mask).mean() == 127.5)
    jobs = [job("bob", loras["bob"], seed=2), job("ann", loras["ann"], seed=3), job("man", None, seed=3)]
    records = generate(tiny_backbone, jobs, **SETTING, batch_size=4, out=tmp_path / "out", start=start)
    assert records[1].denoise == 0.7 and records[1].start_sha256 == start.digest
    stock = kind.from_pretrained(tiny_flux_dir)
    stock.set_progress_bar_config(disable=True)
    for record, lora in ((records[2], None), (records[1], loras["ann"])):
        if lora is not None:
            stock.load_lora_weights(str(lora.parent), weight_name=lora.name)
        theirs = stock(
            PROMPTS["frontal-00"],
            image=start.image,
            **({"mask_image": start.mask} if masked else {}),
            strength=0.7,
            generator=image_noise(seed=3, prompt_id="frontal-00"),
            num_inference_steps=3,
            guidance_scale=3.5,
            height=SIZE[0],
            width=SIZE[1],
            max_sequence_length=tiny_backbone.max_text_tokens,
        ).images[0]
        assert np.abs(pixels(tmp_path / "out", record) - np.asarray(theirs, dtype=np.int16)).max() <= 1


def test_pictures_that_cannot_be_drawn_over(picture, tmp_path):
    photo, mask = picture
    black = tmp_path / "black.png"
    Image.new("L", (80, 40)).save(black)
    for arguments, message in (
        ({"denoise": 0.0}, "nothing would be drawn.*key: denoise"),
        ({"denoise": 1.5}, "nothing would be drawn.*at most 1"),
        ({"denoise": 0.3}, "nothing would be drawn"),  # of 3 steps, none
        ({"mask": black}, "the mask leaves nothing to draw.*key: mask"),
        ({"mask": tmp_path / "none.png"}, "none.png.*key: mask"),
    ):
        values = {"mask": mask, "denoise": 0.7} | arguments
        with pytest.raises(UserError, match=message):
            load_start(photo, values["mask"], size=SIZE, denoise=values["denoise"], steps=3)
    Image.new("L", (40, 80), 255).save(black)
    with pytest.raises(UserError, match="the mask does not fit the picture; expected 80 x 40 pixels; got 40 x 80"):
        load_start(photo, black, size=SIZE, denoise=0.7, steps=3)


def test_bad_requests(tiny_backbone, jobs, loras, tmp_path):
    def run(jobs, **changes):
        generate(tiny_backbone, jobs, **(SETTING | changes), batch_size=4, out=tmp_path / "out")

    with pytest.raises(UserError, match="multiples of 8"):
        run(jobs, size=(20, 16))
    with pytest.raises(UserError, match="one file"):
        run([jobs[0], jobs[0]])
    with pytest.raises(UserError, match="the rank it is asked for with; expected rank 2"):
        run([job("ann", loras["ann"], rank=2)])
    with pytest.raises(UserError, match="slashes"):
        run([job("../ann", loras["ann"])])
    with pytest.raises(UserError, match="missing"):
        run([job("ann", tmp_path / "nothing.safetensors")])
