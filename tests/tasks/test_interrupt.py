"""Ctrl-C in real processes, in a terminal and without: once saves, twice stops now, both go on to the same bits."""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from terminal import Command

from metalora.cli import main

WORLD = (
    "people.count=4",
    "people.photos=5",
    "resolutions=[64]",
    "stage1.batch_size=4",
    "stage1.q_bucket=10",
    "stage1.q_warmup=4",
    "stage1.q_total=40",
    "meta_rank=4",
    "trainer.threads=1",
)
SMALL = (
    *WORLD,
    "sampling.steps=1",
    "protocol.several_photo_people=1",
    "protocol.single_photo_people=1",
    "protocol.frontal_prompts=1",
    "protocol.clip_prompts=1",
)
SLOW = """
import sys, time
import metalora.training.{stage} as stage
from metalora.cli import main

real, calls = stage.diffusion_loss, 0

def slow(*arguments, **options):
    global calls
    calls += 1
    if calls == 12:
        print("an iteration that lasts", file=sys.stderr, flush=True)
        time.sleep({seconds})
    return real(*arguments, **options)

stage.diffusion_loss = slow
main({words!r})
"""
"""The command line in a process whose twelfth iteration lasts."""


@pytest.fixture(scope="module")
def outputs(mini_phd: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("interrupted")
    shutil.copytree(mini_phd, folder / "data" / "mini_phd")
    os.environ["METALORA_OUTPUTS"] = str(folder)
    main(["meta-train", "class_noun=woman", "name=uncut", *WORLD])
    yield folder
    del os.environ["METALORA_OUTPUTS"]


def started(words: list[str], *, tty: bool, slow: tuple[str, float] | None = None) -> Command:
    code = [
        "-c",
        SLOW.format(stage=slow[0], seconds=slow[1], words=words),
    ] if slow else ["-m", "metalora", *words]  # fmt: skip
    environment = {"OMP_NUM_THREADS": "1", "TERM": "xterm-256color", "CI": ""}
    return Command([sys.executable, *code], environment=environment, tty=tty)


def stopped_cleanly(command: Command, *, within: float = 240) -> None:
    begin = time.monotonic()
    assert command.ended(seconds=within) == 130, command.text
    assert time.monotonic() - begin < within
    assert "Traceback" not in command.text and "metalora: stopped; the same command continues" in command.text


@pytest.mark.slow
def test_ctrl_c_once_in_a_terminal_then_twice_before_a_pipe_then_to_the_same_bits(outputs: Path) -> None:
    words = ["meta-train", "class_noun=woman", "name=cut", *WORLD]
    cut = started(words, tty=True, slow=("meta_training", 3.0))
    cut.until(lambda: "an iteration that lasts" in cut.text)
    time.sleep(1.0)
    cut.ctrl_c()
    cut.until(lambda: "saving after the iteration at hand; Ctrl-C again stops now" in cut.text)
    stopped_cleanly(cut)
    (folder,) = (outputs / "cut" / "meta-train").glob("woman-*")
    assert (folder / "last.ckpt").is_file() and not (folder / "prior.safetensors").exists()
    draws = cut.text
    assert "━" in draws and "Stage 1, bucket 2/4, warm-up, 1 person" in draws, draws
    assert ("it/s" in draws or "s/it" in draws) and " left" in draws and "11/40" in draws, draws
    assert "\x1b[" in cut.raw

    before = (folder / "last.ckpt").read_bytes()
    twice = started([*words, "trainer.checkpoint_seconds=1000"], tty=False, slow=("meta_training", 600.0))
    twice.until(lambda: "an iteration that lasts" in twice.text)
    twice.ctrl_c()
    twice.until(lambda: "Ctrl-C again stops now" in twice.text, seconds=30)
    twice.ctrl_c()
    stopped_cleanly(twice)  # and not after ten minutes
    assert (folder / "last.ckpt").read_bytes() == before  # now means now
    assert "\x1b" not in twice.raw and "\r" not in twice.raw and "━" not in twice.raw

    main(words)
    (uncut,) = (outputs / "uncut" / "meta-train").glob("woman-*")
    for name in ("prior.safetensors", "metrics.csv"):
        assert (folder / name).read_bytes() == (uncut / name).read_bytes(), name


@pytest.mark.slow
def test_stage_2_goes_on_to_the_same_bits(outputs: Path) -> None:
    photo = next((outputs / "data").rglob("*.png"))
    words = ["personalize", f"image={photo}", "class_noun=woman", "method=lora_aug", "face=largest", *WORLD]
    words += ["iterations=[10,30]", "trainer.checkpoint_seconds=1000"]
    main([*words, f"out={outputs}/whole"])
    cut = started([*words, f"out={outputs}/half"], tty=False, slow=("personalization", 2.0))
    cut.until(lambda: "an iteration that lasts" in cut.text)
    cut.ctrl_c()
    stopped_cleanly(cut)
    (state,) = (outputs / "half").glob("cohort-*/last.ckpt")
    (early,) = (outputs / "half").glob("*/lora-000010.safetensors")
    assert state.is_file() and not early.with_name("lora-000030.safetensors").exists()
    main([*words, f"out={outputs}/half"])
    for name in ("lora-000010.safetensors", "lora-000030.safetensors"):
        (one,), (other,) = ((outputs / half).glob(f"*/{name}") for half in ("half", "whole"))
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_ctrl_c_once_and_twice_reach_the_workers_of_reproduce_then_to_the_same_bits(outputs: Path) -> None:
    """A worker hears SIGTERM, then SIGKILL. SIGTERM from elsewhere: test_workers.py, training/test_resume.py."""
    words = ["reproduce", "experiment=mini/reproduce", *SMALL, "methods=[lora,meta_lora]", "classes=woman"]
    words += ["iterations=[1,80]", "headline.target_iterations=80", "name=both", "trainer.workers=2"]
    folder = outputs / "both"
    cut = started(words, tty=True)
    cut.until(lambda: list(folder.glob("personalize/*/*/lora-000001.safetensors")), seconds=500)  # Stage 2 has begun
    cut.ctrl_c()
    cut.until(lambda: "the workers save what they train; Ctrl-C again stops now" in cut.text)
    stopped_cleanly(cut)
    saved = {path: path.read_bytes() for path in folder.glob("personalize/*/*/last.ckpt")}
    assert saved, "nothing was saved"
    assert not list(folder.glob("personalize/*/*/lora-000080.safetensors"))
    assert "score lora rank 1 woman" in cut.text and "━" in cut.text and "of 4 jobs done" in cut.text
    assert "last scores: base woman, 0 iterations: R-FaceSim" in cut.text

    twice = started([*words, "trainer.checkpoint_seconds=1000"], tty=False)
    twice.until(lambda: "Stage 2, " in twice.text, seconds=500)
    twice.ctrl_c()
    twice.until(lambda: "Ctrl-C again stops now" in twice.text)
    twice.ctrl_c()
    stopped_cleanly(twice)
    assert "\x1b" not in twice.raw and "━" not in twice.raw

    def made() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}

    there = made()
    assert there
    main([*words[:-1], "trainer.workers=1"])  # in this process: the others have shown that workers go on
    assert {path: stamp for path, stamp in made().items() if path in there} == there
    summary = json.loads((folder / "summary.json").read_text())
    assert {(c["method"], c["iterations"]) for c in summary["curves"]} >= {("lora", 80), ("meta_lora", 80)}
    (prior,) = folder.glob("meta-train/woman-*/prior.safetensors")
    alone = ["personalize", "image=benchmark", "class_noun=woman", "iterations=[1,80]", "name=one", *SMALL]
    for method in ("lora", "meta_lora"):
        main([*alone, f"method={method}", f"priors.woman={prior}"])
    found = {path.relative_to(folder): path for path in folder.glob("personalize/*/*/lora-000080.safetensors")}
    assert len(found) == 4
    for name, path in found.items():
        assert path.read_bytes() == (outputs / "one" / name).read_bytes(), name
    (uncut,) = (outputs / "uncut" / "meta-train").glob("woman-*/prior.safetensors")
    assert prior.read_bytes() == uncut.read_bytes()
