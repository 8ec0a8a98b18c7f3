"""`metalora rival` on the shipped mini world, shrunk: one man of each part, one prompt each."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops

from metalora.adapters.artifacts import file_sha256
from metalora.adapters.face_adapter import FaceAdapter, FaceAdapterShape, save_face_adapter
from metalora.backbones.fingerprint import fingerprint
from metalora.cli import main
from metalora.core.manifest import read_manifest
from metalora.core.noise import generator
from metalora.evaluation.score_table import read_scores
from metalora.tasks import rival

WEIGHTS = Path(rival.__file__).parents[1] / "miniworld" / "weights"
SMALL = (
    "classes=man",
    "sampling.steps=1",
    "protocol.several_photo_people=1",
    "protocol.single_photo_people=1",
    "protocol.frontal_prompts=2",
    "protocol.clip_prompts=1",
    "dreambooth.iterations=1",
    "textual_inversion.iterations=1",
    "trainer.threads=1",
)


@pytest.fixture(scope="module")
def outputs(mini_phd: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("outputs")
    shutil.copytree(mini_phd, folder / "data" / "mini_phd")
    os.environ["METALORA_OUTPUTS"] = str(folder)
    yield folder
    del os.environ["METALORA_OUTPUTS"]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for the shipped base that nobody trained, and that is not silent."""
    made = FaceAdapter(FaceAdapterShape(width=128, heads=4, blocks=6, embedding=128, patches=64, features=128))
    with torch.no_grad():
        for place, block in enumerate(made.blocks):
            block.to_out.weight.normal_(std=0.3, generator=generator("out", place))  # type: ignore[union-attr]
    path = tmp_path_factory.mktemp("adapter") / "model.safetensors"
    header = {
        "backbone": "mini",
        "backbone_fingerprint": fingerprint(WEIGHTS / "flux" / "transformer"),
        "face_sha256": file_sha256(WEIGHTS / "face" / "model.safetensors"),
    }
    save_face_adapter(path, made, metadata=header)
    return path


def images_of(outputs: Path, name: str, label: str) -> dict[tuple[str, str], Image.Image]:
    """Images by identity and prompt; the base has no identity."""
    (folder,) = (outputs / name / "generate").glob(f"{label}-*")
    found = {(r.identity, r.prompt_id): Image.open(folder / r.file).convert("RGB") for r in read_manifest(folder)}
    assert found
    return found


@pytest.mark.slow
def test_every_rival_learns_draws_and_is_scored(outputs: Path, adapter: Path) -> None:
    main(["rival", *SMALL, f"ip_adapter.adapter={adapter}"])
    tables = sorted((outputs / "default" / "evaluate").glob("*/scores.parquet"))
    scores = read_scores(tables)
    assert {"base", "ip_adapter", "dreambooth", "textual_inversion"} <= set(scores["method"])
    for method, iterations in (("ip_adapter", 0), ("dreambooth", 1), ("textual_inversion", 1)):
        own = scores.query("method == @method")
        assert len(own) == 3  # two frontal prompts for one man, one scene for the other
        assert set(own["rank"]) == {0}
        assert set(own["iterations"]) == {iterations}
        assert own["clip_t"].notna().sum() == 1
        assert own["clip_i"].notna().sum() == 1  # the base drew the same prompt from the same noise
        assert own["face_found"].notna().sum() == 2
        folder = next((outputs / "default" / "rival").glob(f"{method}-man-*"))
        assert len(list(folder.glob("*.safetensors"))) == 2
        assert (folder / "manifest.json").is_file()


def test_the_same_command_again_makes_nothing(outputs: Path, adapter: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in outputs.rglob("*") if path.is_file()}
    main(["rival", *SMALL, f"ip_adapter.adapter={adapter}"])
    assert {path: path.stat().st_mtime_ns for path in outputs.rglob("*") if path.is_file()} == before


def test_a_cut_run_makes_what_is_missing_and_nothing_else(outputs: Path, adapter: Path) -> None:
    (folder,) = (outputs / "default" / "generate").glob("dreambooth-man-*")
    first, *others = sorted((folder / "images").rglob("*.png"))
    kept = {path: path.stat().st_mtime_ns for path in others}
    pixels = Image.open(first).convert("RGB").copy()
    (folder / "manifest.json").unlink()
    first.unlink()
    main(["rival", *SMALL, "methods=dreambooth", f"ip_adapter.adapter={adapter}"])
    assert furthest(Image.open(first).convert("RGB"), pixels) <= 1  # matrix products differ in the last bit
    assert {path: path.stat().st_mtime_ns for path in others} == kept


def furthest(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of two pictures, in levels of 255."""
    return max(high for _, high in ImageChops.difference(one, other).getextrema())


def test_scale_0_draws_the_base_and_scale_1_does_not(outputs: Path, adapter: Path) -> None:
    main(["rival", *SMALL, "methods=ip_adapter", "name=silent", "ip_adapter.scale=0", f"ip_adapter.adapter={adapter}"])
    base = {prompt: image for (_, prompt), image in images_of(outputs, "silent", "base-man").items()}
    silent, loud = (images_of(outputs, name, "ip_adapter-man") for name in ("silent", "default"))
    for (identity, prompt), image in silent.items():
        assert furthest(image, base[prompt]) <= 1  # bit for bit in one batch: tests/adapters/test_face_adapter.py
        assert furthest(loud[identity, prompt], base[prompt]) > 20


def test_an_adapter_of_another_base_or_face_network_is_one_line(
    outputs: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    from metalora.adapters.artifacts import read_tensors

    metadata = read_tensors(adapter, what="adapter")[1]
    for key, message in (("backbone_fingerprint", "made for another base"), ("face_sha256", "another face network")):
        other = tmp_path / f"{key}.safetensors"
        save_file(load_file(adapter), other, metadata=metadata | {key: "0" * 64})
        with pytest.raises(SystemExit) as stopped:
            main(["rival", *SMALL, "methods=ip_adapter", f"ip_adapter.adapter={other}"])
        assert stopped.value.code == 2
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("metalora:")]
        assert len(said) == 1
        assert message in said[0]
        assert "key: ip_adapter." in said[0]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("methods=pulid", "unknown in methods; expected ip_adapter, dreambooth, textual_inversion; got pulid"),
        ("classes=child", "unknown in classes"),
        ("dreambooth.learning_rate=0", "key: dreambooth.learning_rate"),
        ("dreambooth.iterations=half", "key: dreambooth.iterations"),
        ("dreambooth.crops=1", "key: dreambooth.crops"),
        ("textual_inversion.cohort_size=0", "key: textual_inversion.cohort_size"),
        ("ip_adapter.scale=much", "key: ip_adapter.scale"),
        ("ip_adapter.adapter=nowhere.safetensors", "key: ip_adapter.adapter"),
        ("out=here", "key: out"),
    ],
)
def test_bad_values_are_one_line(
    outputs: Path, adapter: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    section = override.split(".")[0]
    methods = [f"methods={section}"] if section in rival.RIVALS else []
    given = [] if "adapter.adapter" in override else [f"ip_adapter.adapter={adapter}"]
    with pytest.raises(SystemExit) as stopped:
        main(["rival", *SMALL, *methods, *given, override])
    assert stopped.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("metalora:")]
    assert len(said) == 1
    assert message in said[0]


def test_the_manifest_tells_what_an_image_was_made_with(outputs: Path) -> None:
    (folder,) = (outputs / "default" / "generate").glob("textual_inversion-man-*")
    parents = json.loads((folder / "manifest.json").read_text())["parents"]
    for record in read_manifest(folder):
        assert record.lora == ""
        assert record.lora_sha256 == parents[record.identity]
