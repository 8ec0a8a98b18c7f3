"""The corpus: complete, deterministic, resumable, protected from other arguments."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from metalora.core.errors import UserError
from metalora.miniworld import corpus
from metalora.miniworld.corpus import SIZES, main, write_corpus
from metalora.miniworld.shots import Shot

ARGUMENTS = {"people": 4, "photos": 8, "seed": 5}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus")
    write_corpus(out, **ARGUMENTS)
    return out


def arrays(out: Path) -> dict[str, np.ndarray]:
    return {path.name: np.load(path, mmap_mode="r") for path in sorted(out.glob("images_*.npy"))}


def test_layout_and_table(finished: Path) -> None:
    table = pd.read_parquet(finished / "meta.parquet")
    assert len(table) == 32
    assert table.groupby("identity").size().tolist() == [8] * 4
    assert (table["size"] == "64x64").mean() == 0.5
    for height, width in SIZES:
        part = table[table["size"] == f"{height}x{width}"]
        images = np.load(finished / f"images_{height}x{width}.npy", mmap_mode="r")
        assert images.shape == (len(part), height, width, 3)
        assert part.row.tolist() == list(range(len(part)))
        assert ((part.x0 >= 0) & (part.x1 <= width) & (part.y0 >= 0) & (part.y1 <= height)).all()
    shot = Shot.from_json(table["shot"][0])
    for name in ("style", "scene", "shirt", "expression", "light", "pose", "framing", "yaw", "scale"):
        assert getattr(shot, name) == table[name][0]


def test_a_cut_run_goes_on_after_its_last_chunk(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "_CHUNK", 5)
    real, calls = corpus.render, []

    def counting(people, shots, **size):
        calls.append(len(shots))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(people, shots, **size)

    monkeypatch.setattr(corpus, "render", counting)
    with pytest.raises(KeyboardInterrupt):
        write_corpus(tmp_path, **ARGUMENTS)
    assert not (tmp_path / "manifest.json").exists()
    write_corpus(tmp_path, **ARGUMENTS)
    assert sum(calls) == 32 + calls[3]  # the interrupted chunk again, none of the others
    whole = arrays(finished)
    for name, images in arrays(tmp_path).items():
        assert np.array_equal(images, whole[name]), name


def test_a_finished_corpus_is_left_alone(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "render", None)
    write_corpus(finished, **ARGUMENTS)
    assert json.loads((finished / "manifest.json").read_text())["images"] == 32


def test_other_arguments_are_refused(finished: Path) -> None:
    with pytest.raises(UserError, match="another corpus"):
        write_corpus(finished, people=4, photos=8, seed=6)
    for bad in (["people=2"], ["out=x", "people=two"], ["out=x", "size=3"]):
        with pytest.raises(UserError):
            main(bad)
