"""Every task, shrunk, on the shipped mini world: what a newcomer types, in the order they type it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pandas.testing import assert_frame_equal
from PIL import Image
from safetensors.torch import save_file
from test_conf import composed

import metalora
from metalora.adapters.artifacts import file_sha256, load_prior
from metalora.cli import main
from metalora.core.errors import UserError
from metalora.evaluation.score_table import read_scores
from metalora.reporting.report import Report
from metalora.running.setting import Setting
from metalora.running.study import newest_study
from metalora.tasks import reproduce
from metalora.tasks.report import report
from metalora.tasks.reproduce import prompts_of, subjects_of

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
def outputs(mini_phd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outputs")
    shutil.copytree(mini_phd, folder / "data" / "mini_phd")
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
    page = outputs / "reproduce" / "report" / "index.html"
    before, drawn = made(outputs), page.stat().st_mtime_ns
    main(["reproduce", "experiment=mini/reproduce", *SMALL])
    assert made(outputs) == before
    served = capsys.readouterr().out
    assert page.stat().st_mtime_ns == drawn  # not even the report is drawn again
    (page.parent / "made.json").unlink()
    main(["reproduce", "experiment=mini/reproduce", *SMALL])
    assert page.stat().st_mtime_ns > drawn
    assert capsys.readouterr().out == served and "report:" in served


def test_two_processes_train_the_prior_of_one(outputs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stage1 = [word for word in SMALL if word.startswith(("people.", "stage1.", "meta_rank", "trainer."))]
    stage1.append("stage1.uses_per_example=1")  # a bucket of all four people
    for words in (["name=alone"], ["name=together", "trainer.devices=2"]):
        main(["meta-train", "experiment=mini/reproduce", *stage1, *words])
    together = next((outputs / "together" / "meta-train").glob("woman-*/prior.safetensors"))
    alone = outputs / "alone" / "meta-train" / together.parent.name / together.name  # not another hash
    ours, expected = load_prior(together), load_prior(alone)
    assert ours.metadata == expected.metadata
    largest = max(float((ours.meta_down[name] - expected.meta_down[name]).abs().max()) for name in expected.meta_down)
    assert largest <= 2e-5, largest  # 1e-6 after 12 iterations; an iteration moves a number by up to 5e-3
    told = capfd.readouterr().err
    assert "2 processes; of an iteration's 4 samples, 2 each" in told
    assert told.count("people in") == 2  # once a run: the other process is silent


def test_what_is_lost_is_made_again(outputs: Path) -> None:
    lost = sorted((outputs / "reproduce" / "personalize").rglob("lora-000002.safetensors"))[0]
    before = lost.read_bytes()
    lost.unlink()
    main(["reproduce", "experiment=mini/reproduce", *SMALL])
    assert lost.read_bytes() == before


@pytest.mark.parametrize(
    ("protocol", "faces", "singles", "frontal", "clip", "seeds"),
    [("quick", 8, 8, 10, 10, 1), ("full", 8, 30, 10, 20, 5)],
)
def test_a_protocol_counts_what_it_says(
    outputs: Path, protocol: str, faces: int, singles: int, frontal: int, clip: int, seeds: int
) -> None:
    setting = Setting.of(composed("task=reproduce", f"protocol={protocol}"))
    assert len(setting["protocol.seeds"]) == seeds
    for noun in ("man", "woman"):
        subjects = subjects_of(setting, noun)
        several = [subject for subject in subjects if subject.test_photos]
        assert (len(several), len(subjects) - len(several)) == (faces, singles)
        for subject in subjects:
            kinds = [prompt.kind for prompt in prompts_of(setting, subject)]
            assert kinds.count("frontal") == (frontal if subject in several else 0)
            assert len(kinds) - kinds.count("frontal") == (0 if subject in several else clip)


def test_a_sweep_over_ranks_reuses_priors_and_joins_the_report(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[int]] = []

    def counted(*arguments: Any, **options: Any) -> Report:
        outcome = report(*arguments, **options)
        curves = json.loads((outputs / "reproduce" / "summary.json").read_text())["curves"]
        seen.append({curve["rank"] for curve in curves})
        return outcome

    monkeypatch.setattr(reproduce, "report", counted)
    monkeypatch.setattr(reproduce, "REFRESH_SECONDS", 0.0)
    priors = {name: stamp for name, stamp in made(outputs).items() if name.endswith("prior.safetensors")}
    main(["reproduce", "-m", "experiment=mini/reproduce", *SMALL, "rank=1,2", "methods=lora_aug"])
    assert {n: s for n, s in made(outputs).items() if n.endswith("prior.safetensors")} == priors
    summary = json.loads((outputs / "reproduce" / "summary.json").read_text())
    assert {curve["rank"] for curve in summary["curves"]} == {0, 1, 2}
    assert seen[0] == {0, 1} and {0, 1, 2} in seen[:-1]  # the report is written as results come, not only at the end


def test_one_photo_to_one_lora_to_images_to_scores(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = sorted((outputs / "data" / "mini_phd" / "ffhq" / "woman").glob("*.png"))[0]
    prior = next((outputs / "reproduce" / "meta-train").glob("woman-*/prior.safetensors"))
    out, name = outputs / "mine", f"ffhq-woman-{photo.stem}"  # what the benchmark calls her
    me = [f"image={photo}", "class_noun=woman", f"identity={name}", f"prior={prior}"]
    main(["personalize", *me, f"out={out}", *SMALL[:8]])
    lora = out / name / "lora-000002.safetensors"
    assert lora.is_file()
    prompt = "a pencil drawing of a woman smiling, facing the camera"
    main(["generate", f"lora={lora}", f"prompt={prompt}", "sampling.steps=1", f"out={out}/images"])
    (line,) = (out / "images" / "manifest.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert (record["method"], record["prompt"], record["prompt_id"]) == ("meta_lora", prompt, "style-01")
    assert (out / "images" / record["file"]).is_file()
    drawn = (out / "images" / record["file"]).read_bytes()
    with pytest.raises(SystemExit):  # the same folder for another picture
        main(["generate", f"lora={lora}", f"prompt={prompt}", "sampling.steps=2", f"out={out}/images"])
    assert "holds other images under the same names" in capsys.readouterr().err
    assert (out / "images" / record["file"]).read_bytes() == drawn
    main(["export", f"lora={lora}", "dtype=bfloat16"])
    assert lora.with_name("lora-000002-bfloat16.safetensors").stat().st_size < lora.stat().st_size
    assert "Consent" in lora.with_name("README.md").read_text()
    share_it_everywhere(lora, out, prompt)
    main(["evaluate", f"images={out / 'images'}", f"out={out}/scores", "allow_missing=true"])
    scores = read_scores([out / "scores" / "scores.parquet"])
    row = scores[scores["method"] == "meta_lora"].iloc[0]
    assert row["identity"] == name and abs(row["clip_t"]) < 1  # and no NaN
    main(["report", f"scores={outputs / 'reproduce'}", f"out={out / 'page'}"])
    assert f"report: {out / 'page' / 'index.html'}" in capsys.readouterr().out
    assert (out / "page" / "summary.json").is_file()
    before = lora.read_bytes()
    with pytest.raises(SystemExit):  # the same folder under another configuration
        main(["personalize", *me, f"out={out}", *SMALL[:8], "learning_rate=1e-4"])
    assert "key: learning_rate" in capsys.readouterr().err and lora.read_bytes() == before


def share_it_everywhere(lora: Path, out: Path, prompt: str) -> None:
    """Both layouts, the card, and the base model with the LoRA in its weights: the same picture from each."""
    samples, ours = f"samples={out}/images", out / "share" / "me.safetensors"
    main(["export", f"lora={lora}", "format=all", samples, f"out={ours}"])
    assert ours.with_name("me-kohya.safetensors").is_file()
    card = ours.with_name("README.md").read_text()
    assert "me-kohya.safetensors" in card and "samples/style-01-0.png" in card
    assert (ours.parent / "samples" / "style-01-0.png").is_file()
    for strange in (
        [f"samples={out}/images/none"],
        [f"samples={next(out.parent.glob('reproduce/generate/lora-r1-*'))}"],
    ):
        with pytest.raises(SystemExit):
            main(["export", f"lora={lora}", *strange, f"out={out}/other.safetensors"])
        assert not (out / "other.safetensors").exists()
    # Two iterations have taught it next to nothing: what every file does is seen when it is multiplied.
    main(["export", f"lora={lora}", "strength=100", f"out={out}/strong.safetensors"])
    main(["export", f"lora={out}/strong.safetensors", "format=kohya", f"out={out}/theirs.safetensors"])
    lora, theirs = out / "strong.safetensors", out / "theirs.safetensors"
    main(["export", f"lora={lora}", "merge=true", f"out={out}/merged"])
    pictures = []
    for name, given in (
        ("plain", [f"lora={lora}"]),
        ("kohya", [f"lora={theirs}"]),
        ("base", [f"backbone.path={out}/merged"]),
    ):
        main(["generate", *given, f"prompt={prompt}", "sampling.steps=1", f"out={out}/{name}"])
        (path,) = (out / name).rglob("*.png")
        pictures.append(np.asarray(Image.open(path), dtype=np.int16))
    assert np.array_equal(pictures[0], pictures[1]) and np.abs(pictures[0] - pictures[2]).max() <= 1
    main(["generate", f"prompt={prompt}", "sampling.steps=1", f"out={out}/untouched"])
    (path,) = (out / "untouched").rglob("*.png")
    assert np.abs(pictures[0] - np.asarray(Image.open(path), dtype=np.int16)).max() > 10
    start = next((out / "plain").rglob("*.png"))
    main(["generate", f"lora={lora}", f"prompt={prompt}", f"init_image={start}", "denoise=0.5", f"out={out}/over"])
    (line,) = (out / "over" / "manifest.jsonl").read_text().splitlines()
    assert json.loads(line)["denoise"] == 0.5 and json.loads(line)["start_sha256"]


def test_a_reader_that_leaves_is_no_error(outputs: Path, tmp_path: Path) -> None:
    """`metalora export ... | head -1`"""
    lora = next((outputs / "reproduce" / "personalize").glob("lora-*/*/lora-*.safetensors"))
    command = [sys.executable, "-u", "-m", "metalora", "export", f"lora={lora}", f"out={tmp_path}/me.safetensors"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None and run.stderr is not None
        run.stdout.close()
        said = run.stderr.read()
        assert run.wait(timeout=120) == 141 and "Traceback" not in said, said
    assert (tmp_path / "me.safetensors").is_file()


def test_images_of_another_program_are_scored_from_their_list_alone(outputs: Path, tmp_path: Path) -> None:
    """A baseline without LoRAs: a folder of pictures and a manifest.jsonl, nothing else of ours."""
    made = next((outputs / "reproduce" / "generate").glob("lora-r1-woman-*"))
    records = [json.loads(line) for line in (made / "manifest.jsonl").read_text().splitlines()]
    foreign = tmp_path / "foreign"
    shutil.copytree(made / "images", foreign / "images")
    lines = [json.dumps(r | {"method": "pulid", "lora": "", "lora_sha256": ""}) for r in records]
    (foreign / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    base = next((outputs / "reproduce" / "generate").glob("base-woman-*"))
    main(
        ["evaluate", f"images={foreign}", f"base_images={base}", f"out={tmp_path}/foreign_scores", "allow_missing=true"]
    )
    main(["evaluate", f"images={made}", f"base_images={base}", f"out={tmp_path}/scores", "allow_missing=true"])
    columns = ["identity", "prompt_id", "iterations", "seed", "clip_t", "clip_i", "face_sim", "r_face_sim"]
    one, other = (read_scores([tmp_path / name / "scores.parquet"]) for name in ("foreign_scores", "scores"))
    one, other = one[one["method"] == "pulid"], other[other["method"] == "lora"]
    assert len(one) == len(records)
    assert_frame_equal(one[columns].reset_index(drop=True), other[columns].reset_index(drop=True))


def test_a_prior_that_is_given_needs_no_stage_1(outputs: Path) -> None:
    prior = next((outputs / "reproduce" / "meta-train").glob("woman-*/prior.safetensors"))
    words = ["name=given", *SMALL, "methods=meta_lora", "classes=woman", f"priors.woman={prior}"]
    main(["reproduce", "experiment=mini/reproduce", *words])
    folder = outputs / "given"
    assert not (folder / "meta-train").exists()
    (lora,) = (folder / "personalize").glob("meta_lora-*/manifest.json")
    assert json.loads(lora.read_text())["parents"] == {"prior": file_sha256(prior)}
    assert newest_study(folder) != newest_study(outputs / "reproduce")  # another study, equal priors or not
    before = made(folder)
    main(["reproduce", "experiment=mini/reproduce", *words])
    assert made(folder) == before


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


@pytest.fixture(scope="module")
def bad_input(outputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos and files that cannot be used, each in its own way."""
    folder = tmp_path_factory.mktemp("bad")
    photo = sorted((outputs / "data" / "mini_phd" / "ffhq" / "woman").glob("*.png"))[0]
    face = Image.open(photo).convert("RGB")
    Image.new("RGB", (160, 160)).save(folder / "black.png")
    two = Image.new("RGB", (2 * face.width, face.height))
    two.paste(face, (0, 0))
    two.paste(face, (face.width, 0))
    two.save(folder / "two.png")
    (folder / "cut.png").write_bytes(photo.read_bytes()[: photo.stat().st_size // 2])
    (folder / "empty.png").touch()
    (folder / "words.png").write_text("a photo of me")
    (folder / "people" / "ann").mkdir(parents=True)
    shutil.copy(photo, folder / "people" / "ann")
    (folder / "people" / "nobody").mkdir()
    made = next((outputs / "reproduce" / "generate").glob("lora-r1-woman-*"))
    shutil.copytree(made, folder / "unfinished", ignore=shutil.ignore_patterns("manifest.json"))
    prior = load_prior(next((outputs / "reproduce" / "meta-train").glob("woman-*/prior.safetensors")))
    tensors = {f"{name}.meta_down.weight": tensor for name, tensor in prior.meta_down.items()}
    save_file(tensors, folder / "other.safetensors", metadata=prior.metadata | {"backbone_fingerprint": "another"})
    return folder


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["personalize", "image=nobody.jpg", "class_noun=woman", "method=lora_aug"], "nobody.jpg"),
        (["personalize", "class_noun=woman"], "key: image"),
        (["meta-train", "backbone=flux_dev", "backbone.path={photo}"], "key: people.root"),
        (["reproduce", "priors.woman=nothing.safetensors"], "key: priors.woman"),
        (["reproduce", "priors.man={prior}", "meta_rank=4"], "key: priors.man, meta_rank"),
        (["reproduce", "priors.woman={prior}", "meta_rank=8"], "key: priors.woman, meta_rank"),
        (["evaluate", "images={unfinished}"], "images"),
        (["personalize", "image={photo}", "class_noun=woman"], "prior"),
        (["personalize", "image={photo}", "class_noun=woman", "prior={photo}"], "prior"),
        (["personalize", "image={photo}", "class_noun=woman", "prior={prior}", "meta_rank=8"], "meta_rank"),
        (["personalize", "image={photo}", "class_noun=woman", "prior={prior}", "meta_rank=4", "rank=5"], "rank"),
        (["personalize", "image={photo}", "class_noun=woman", "method=lora_aug", "iterations=0"], "key: iterations"),
        (["personalize", "image={photo}", "class_noun=woman", "method=lora_aug", "iterations=few"], "key: iterations"),
        (["personalize", "image={photo}", "class_noun=woman", "prior=nothing.safetensors"], "key: prior"),
        (["personalize", "image={photo}", "class_noun=man", "prior={prior}", "meta_rank=4"], "key: prior, class_noun"),
        (["personalize", "image={photo}", "class_noun=woman", "identity=a/b", "method=lora"], "key: identity"),
        (["personalize", "image={bad}/black.png", "class_noun=woman", "method=lora_aug"], "no face found in"),
        (["personalize", "image={bad}/two.png", "class_noun=woman", "method=lora_aug"], "2 faces"),
        (["personalize", "image={bad}/cut.png", "class_noun=woman", "method=lora_aug"], "cut.png"),
        (["personalize", "image={bad}/empty.png", "class_noun=woman", "method=lora_aug"], "empty.png"),
        (["personalize", "image={bad}/words.png", "class_noun=woman", "method=lora_aug"], "words.png"),
        (["personalize", "image={bad}/people", "class_noun=woman", "method=lora_aug"], "nobody"),
        (["personalize", "image={photo}", "class_noun=woman", "prior={bad}/other.safetensors", "meta_rank=4"], "prior"),
        (["generate", "seeds=[a]"], "key: seeds"),
        (["generate", "sampling.size=64"], "key: sampling.size"),
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
    outputs: Path, bad_input: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = made(outputs)
    fill = {
        "bad": bad_input,
        "unfinished": bad_input / "unfinished",
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


def test_debug_shows_where(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # so that what debug=true sets does not reach the tests after this one
    with pytest.raises(UserError, match=r"nobody\.jpg"):
        main(["personalize", "image=nobody.jpg", "class_noun=woman", "method=lora_aug", "debug=true"])
