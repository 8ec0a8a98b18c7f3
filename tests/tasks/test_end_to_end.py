"""Every task, shrunk, on the shipped mini world: what a newcomer types, in the order they type it."""

import json
import os
import time
from pathlib import Path

import pytest

import metalora
from metalora.cli import main

PACKAGE = Path(metalora.__file__).parent
SMALL = (
    "people.count=4",
    "people.photos=5",
    "stage1.batch_size=4",
    "stage1.q_bucket=5",
    "stage1.q_warmup=2",
    "stage1.q_total=6",
    "meta_rank=4",
    "iterations=[1,2]",
    "sampling.steps=1",
    "protocol.several_photo_people=1",
    "protocol.single_photo_people=1",
    "protocol.frontal_prompts=1",
    "protocol.clip_prompts=1",
    "headline.target_iterations=2",
    "trainer.workers=1",
    "trainer.threads=1",
)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outputs")
    os.environ["METALORA_OUTPUTS"] = str(folder)
    main(["reproduce", "experiment=mini/reproduce", *SMALL])
    yield folder
    del os.environ["METALORA_OUTPUTS"]


def made(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*.safetensors"))}


def test_reproduce_ends_with_a_report_of_every_cell(outputs: Path) -> None:
    summary = json.loads((outputs / "reproduce" / "summary.json").read_text())
    cells = {(c["method"], c["rank"], c["iterations"]) for c in summary["curves"] if c["class"] == "woman"}
    assert cells >= {(method, 1, count) for method in ("lora", "lora_aug", "meta_lora") for count in (1, 2)}
    for curve in summary["curves"]:
        assert {"r_face_sim", "face_sim", "clip_t", "clip_i", "face_found", "ci95", "images"} <= set(curve)
    assert summary["steps_to_match"]["target"] == "lora_aug rank 1 at 2"
    assert {"prepare", "meta-train", "personalize", "generate", "evaluate", "wall clock, all runs"} == set(
        summary["seconds"]
    )
    assert summary["facts"]["command"].startswith("metalora reproduce experiment=mini/reproduce people.count=4")
    page = (outputs / "reproduce" / "report" / "index.html").read_text()
    assert "mini world" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert list((outputs / "reproduce" / "report" / "figures").glob("*.svg"))


def test_a_second_run_is_served_from_what_is_there(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, started = made(outputs), time.monotonic()
    main(["reproduce", "experiment=mini/reproduce", *SMALL])
    assert made(outputs) == before
    assert time.monotonic() - started < 60
    assert "report:" in capsys.readouterr().out


def test_what_is_lost_is_made_again(outputs: Path) -> None:
    lost = sorted((outputs / "reproduce" / "personalize").rglob("lora-000002.safetensors"))[0]
    before = lost.read_bytes()
    lost.unlink()
    main(["reproduce", "experiment=mini/reproduce", *SMALL])
    assert lost.read_bytes() == before


def test_a_sweep_over_ranks_reuses_priors_and_joins_the_report(outputs: Path) -> None:
    priors = {name: stamp for name, stamp in made(outputs).items() if name.endswith("prior.safetensors")}
    main(["reproduce", "-m", "experiment=mini/reproduce", *SMALL, "rank=1,2", "methods=lora_aug"])
    assert {n: s for n, s in made(outputs).items() if n.endswith("prior.safetensors")} == priors
    summary = json.loads((outputs / "reproduce" / "summary.json").read_text())
    assert {curve["rank"] for curve in summary["curves"]} == {0, 1, 2}


def test_one_photo_to_one_lora_to_images_to_scores(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = sorted((outputs / "data" / "mini_phd" / "ffhq" / "woman").glob("*.png"))[0]
    prior = next((outputs / "reproduce" / "meta-train").glob("woman-*/prior.safetensors"))
    out = outputs / "mine"
    main(["personalize", f"image={photo}", "class_noun=woman", f"prior={prior}", f"out={out}", *SMALL[:8]])
    lora = out / photo.stem / "lora-000002.safetensors"
    assert lora.is_file()
    main(["generate", f"lora={lora}", "prompt=a photo of a woman on a beach", "sampling.steps=1", f"out={out}/images"])
    lines = (out / "images" / "manifest.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["method"] == "meta_lora"
    assert (out / "images" / json.loads(lines[0])["file"]).is_file()
    main(["export", f"lora={lora}", "dtype=bfloat16"])
    assert lora.with_name("lora-000002-bfloat16.safetensors").stat().st_size < lora.stat().st_size
    main(
        [
            "generate",
            "prompt=a pencil drawing of a woman smiling, facing the camera",
            "sampling.steps=1",
            f"out={out}/b",
        ]
    )
    assert json.loads((out / "b" / "manifest.jsonl").read_text())["prompt_id"] == "style-01"  # so it can be scored
    images = next((outputs / "reproduce" / "generate").glob("lora-r1-woman-*"))
    main(["evaluate", f"images={images}", f"out={out}/scores"])
    assert (out / "scores" / "scores.parquet").is_file()
    main(["report", f"scores={outputs / 'reproduce'}"])
    assert "report:" in capsys.readouterr().out


def test_a_directory_of_flux_weights_and_a_photo_are_enough(outputs: Path) -> None:
    """`backbone=flux_dev` asks for no people, prior or benchmark to personalize and to draw; here at 64 pixels."""
    photo = sorted((outputs / "data" / "mini_phd" / "ffhq" / "man").glob("*.png"))[0]
    flux = ["backbone=flux_dev", f"backbone.path={PACKAGE / 'miniworld' / 'weights' / 'flux'}", "trainer.threads=1"]
    out = outputs / "flux_dev"
    shrunk = ["resolutions=[64]", "iterations=1", "method=lora_aug", f"out={out}"]
    main(["personalize", *flux, f"image={photo}", "class_noun=man", *shrunk])
    lora = out / photo.stem / "lora-000001.safetensors"
    small = ["sampling.size=[64,64]", "sampling.steps=1", f"out={out}/images"]
    main(["generate", *flux, f"lora={lora}", "prompt=a photo of a man", *small])
    image = json.loads((out / "images" / "manifest.jsonl").read_text())
    assert image["method"] == "lora_aug" and (out / "images" / image["file"]).is_file()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["personalize", "image=nobody.jpg", "class_noun=woman", "method=lora_aug"], "nobody.jpg"),
        (["personalize", "class_noun=woman"], "key: image"),
        (["meta-train", "backbone=flux_dev", "backbone.path={photo}"], "key: people.root"),
        (["personalize", "image={photo}", "class_noun=woman"], "prior"),
        (["personalize", "image={photo}", "class_noun=woman", "prior={photo}"], "prior"),
        (["personalize", "image={photo}", "class_noun=woman", "prior={prior}", "meta_rank=8"], "meta_rank"),
        (["personalize", "image={photo}", "class_noun=woman", "prior={prior}", "meta_rank=4", "rank=5"], "rank"),
        (["personalize", "image={photo}", "class_noun=woman", "method=lora_aug", "iterations=0"], "iterations"),
        (["generate", "lora={prior}"], "lora"),
        (["generate", "sampling.size=[60,60]"], "sampling.size"),
        (["evaluate", "images={photo}"], "images"),
        (["report", "scores=nowhere"], "scores"),
        (["reproduce", "out=somewhere"], "out"),
        (["reproduce", "classes=child"], "classes"),
        (["reproduce", "methods=dreambooth"], "methods"),
        (["prepare", "trainer.device=tpu"], "trainer.device"),
        (["prepare", "sets=[everything]"], "sets"),
        (["meta-train", "people=folder", "people.root=nowhere"], "people.root"),
    ],
)
def test_bad_input_is_one_line_with_its_key(
    outputs: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = made(outputs)
    fill = {
        "photo": sorted((outputs / "data" / "mini_phd" / "ffhq" / "woman").glob("*.png"))[0],
        "prior": next((outputs / "reproduce" / "meta-train").glob("woman-*/prior.safetensors")),
    }
    with pytest.raises(SystemExit) as stop:
        main([word.format(**fill) for word in words])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2
    assert error.startswith("metalora: ")
    assert told in error
    assert made(outputs) == before
