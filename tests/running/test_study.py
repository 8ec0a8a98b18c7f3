"""A study: what belongs together, what it came from, what it cost."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from test_conf import composed

from metalora.configuration import conf_dir
from metalora.evaluation.score_table import read_scores
from metalora.people.folder import photos_digest
from metalora.running.artifact import Artifact, peak_memory_mb, reset_peak_memory
from metalora.running.setting import Setting
from metalora.running.study import Clock, newest_study, rates_hash, runs, study_hash, used
from metalora.tasks.report import world_of


def manifest(folder: Path, stage: str, name: str, **values: object) -> None:
    path = folder / stage / name / "manifest.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"config": {}, "parents": {}, "seconds": 1.0, "peak_memory_mb": 100} | values))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    manifest(tmp_path, "meta-train", "woman-1", sha256="prior", seconds=5.0)
    manifest(tmp_path, "meta-train", "woman-0", sha256="old prior", seconds=50.0)
    manifest(tmp_path, "personalize", "meta_lora-1", parents={"prior": "prior"}, seconds=3.0, peak_memory_mb=300)
    manifest(tmp_path, "personalize", "lora-1", seconds=2.0)
    backbone = {"backbone": {"name": "mini"}}
    manifest(tmp_path, "generate", "a", config=backbone, parents={"meta_lora-1/anna/lora-000375.safetensors": "x"})
    manifest(tmp_path, "generate", "b", config=backbone, parents={"lora-1/anna/lora-000375.safetensors": "y"})
    manifest(tmp_path, "generate", "other", config=backbone, seconds=90.0)
    manifest(tmp_path, "evaluate", "z-first", config={"study": "S"}, parents={"a": "1"})
    time.sleep(0.02)
    manifest(tmp_path, "evaluate", "a-second", config={"study": "S"}, parents={"b": "1"})
    time.sleep(0.02)
    manifest(tmp_path, "evaluate", "other", config={"study": "T"}, parents={"other": "1"})
    return tmp_path


def test_a_study_is_followed_back_to_what_it_was_made_from(folder: Path) -> None:
    found = used(folder, "S")
    assert found.seconds() == {"meta-train": 5.0, "personalize": 5.0, "generate": 2.0, "evaluate": 2.0}
    assert found.peak_memory_mb()["personalize"] == 300
    assert [path.parent.name for path in found.scores] == ["z-first", "a-second"], "oldest first"
    assert newest_study(folder) == "T"
    assert newest_study(folder / "nowhere") is None


def test_a_table_that_was_made_again_no_longer_counts(tmp_path: Path) -> None:
    def evaluated(name: str, iterations: list[int], lora: str) -> None:
        manifest(tmp_path, "evaluate", name, config={"study": "S"})
        key = {"method": "lora", "rank": 1, "identity": "anna", "prompt_id": "frontal-01", "seed": 0}
        drawn = {"base_model": "mini@0", "steps": 4, "guidance": 2.5, "lora_sha256": lora}
        drawn |= {"file": "a", "reference": "b"}
        rows = pd.DataFrame([key | drawn | {"iterations": count} for count in iterations])
        rows.to_parquet(tmp_path / "evaluate" / name / "scores.parquet")
        time.sleep(0.02)

    def standing() -> list[str]:
        return [path.parent.name for path in used(tmp_path, "S").scores]

    evaluated("lora-1", [250, 375], "ab")
    evaluated("lora-2", [500], "ab")
    evaluated("lora-3", [250, 375], "ab")  # the same again, as the base's rows are in every table
    assert standing() == ["lora-1", "lora-2", "lora-3"]
    evaluated("lora-4", [250, 375], "cd")  # other bits
    assert standing() == ["lora-2", "lora-4"]
    assert len(read_scores(used(tmp_path, "S").scores)) == 3


def test_the_world_is_that_of_the_images_whoever_drew_them(tmp_path: Path) -> None:
    """Of other programs' and published methods' images there is no manifest in `generate`; the scores tell of all."""
    rows = [("base", "mini@0123456789abcdef"), ("base", "sd15@0"), ("mine", "SDXL"), ("photo_test", "")]
    for number, tables in enumerate((rows[:2], rows[2:])):
        manifest(tmp_path, "evaluate", str(number), config={"study": "S"})
        keys = {
            "rank": 0,
            "iterations": 0,
            "identity": "anna",
            "prompt_id": "p",
            "seed": 0,
            "steps": 1,
            "guidance": 1.0,
            "lora_sha256": "",
        }
        told = [{"file": "a.png", "reference": "", "method": m, "base_model": base} | keys for m, base in tables]
        pd.DataFrame(told).to_parquet(tmp_path / "evaluate" / str(number) / "scores.parquet")
    assert used(tmp_path, "S").worlds() == {"mini", "SDXL"}, "a base that nothing stands on is not reported"
    assert used(tmp_path, "T").worlds() == set()
    assert world_of({"mini", "SDXL"}) == "SDXL and the mini world: synthetic people, tiny models"
    assert world_of({"sdxl", "SDXL"}) == "SDXL"


def test_the_clock_adds_up_runs_of_one_study_cut_ones_too(tmp_path: Path) -> None:
    with Clock(tmp_path, "S", {"command": "x"}, started=time.monotonic() - 10).running():
        pass
    with pytest.raises(KeyboardInterrupt), Clock(tmp_path, "S", {}, started=time.monotonic() - 5).running():
        raise KeyboardInterrupt
    with (tmp_path / "runs.jsonl").open("a") as lines:
        lines.write('{"study": "S", "sec')
    clock = Clock(tmp_path, "S", {}, started=time.monotonic() - 1)
    assert clock.seconds() == pytest.approx(16, abs=0.5)
    assert [run["finished"] for run in runs(tmp_path, "S")] == [True, False]
    assert runs(tmp_path, "T") == []


def test_a_replaced_photo_makes_another_set(tmp_path: Path) -> None:
    photos = [tmp_path / "anna" / "1.png", tmp_path / "ben" / "1.png"]
    for photo in photos:
        photo.parent.mkdir()
        photo.write_bytes(b"photo")
    before = photos_digest(photos)
    assert photos_digest(photos[::-1]) == before
    assert photos_digest(photos[:1]) != before
    photos[1].write_bytes(b"another photo")
    assert photos_digest(photos) != before


def test_a_test_photo_replaced_by_one_of_the_same_size_makes_another_study(tmp_path: Path) -> None:
    for name in ("unsplash/ann/0.bmp", "unsplash/ann/1.bmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (9, 9, 9)).save(tmp_path / name)
    (tmp_path / "identities.json").write_text('{"ann": "woman"}')
    prompts = conf_dir() / "prompts" / "mini_phd.yaml"
    words = ("task=evaluate", "benchmark=meta_phd", f"benchmark.root={tmp_path}", f"benchmark.prompts={prompts}")
    setting = Setting.of(composed(*words))
    before = study_hash(setting), rates_hash(setting)
    assert (study_hash(Setting.of(composed(*words))), rates_hash(setting)) == before
    size = (tmp_path / "unsplash/ann/1.bmp").stat().st_size
    Image.new("RGB", (16, 16), (200, 9, 9)).save(tmp_path / "unsplash/ann/1.bmp")
    assert (tmp_path / "unsplash/ann/1.bmp").stat().st_size == size
    assert study_hash(setting) != before[0] and rates_hash(setting) != before[1]


PEAK_FALLS = """
import re
from pathlib import Path
def high(): return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
block = bytearray(200 << 20)
block[::4096] = b"1" * len(block[::4096])
before = high()
del block
Path("/proc/self/clear_refs").write_text("5")
raise SystemExit(high() > before - (100 << 10))
"""
"""Exits with 0 where the kernel lets a process begin its peak anew: Linux, but not every sandbox on it."""


def test_peak_memory_counts_from_the_beginning_of_the_work(tmp_path: Path) -> None:
    if subprocess.run([sys.executable, "-c", PEAK_FALLS], capture_output=True, check=False).returncode:
        pytest.skip("this system keeps a process's peak memory from its start")
    before = bytearray(300 << 20)
    before[::4096] = b"1" * len(before[::4096])
    high = peak_memory_mb()
    del before
    artifact = Artifact(tmp_path, {})
    artifact.begin()
    assert peak_memory_mb() < high - 200
    reset_peak_memory()
