"""Priors and LoRA files: what is written is what is read, and whatever else comes is refused in one line."""

import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from metalora.adapters.artifacts import check_prior, file_sha256, load_lora, load_prior, save_lora, save_prior
from metalora.adapters.bank import AdapterBank
from metalora.core.errors import UserError
from metalora.core.lora import LayerShape

LAYERS = {"blocks.0.first": LayerShape(6, 4), "blocks.0.second": LayerShape(4, 10)}


@pytest.fixture
def bank() -> AdapterBank:
    bank = AdapterBank(LAYERS, identities=["a", "b"], rank=2, meta_rank=3, seed=0)
    with torch.no_grad():
        bank.rows.normal_(generator=torch.Generator().manual_seed(0))
    return bank


@pytest.fixture
def prior_path(bank: AdapterBank, tmp_path: Path) -> Path:
    path = tmp_path / "prior.safetensors"
    save_prior(path, bank, backbone="tiny", backbone_fingerprint="f" * 64, metadata={"class_noun": "woman"})
    return path


def test_a_prior_comes_back(bank: AdapterBank, prior_path: Path) -> None:
    prior = load_prior(prior_path)
    assert list(prior.meta_down) == list(LAYERS) and prior.meta_rank == 3 and prior.metadata["class_noun"] == "woman"
    for name in LAYERS:
        assert torch.equal(prior.meta_down[name], bank.meta_down_of(name))
    check_prior(prior, backbone_fingerprint="f" * 64, meta_rank=3, layers=list(LAYERS))
    check_prior(prior, backbone_fingerprint="f" * 64, meta_rank=None, layers=list(LAYERS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone_fingerprint": "e" * 64}, "another backbone; expected fingerprint eeee"),
        ({"meta_rank": 4}, "another r1; expected r1 = 4; got 3; key: meta_rank"),
        ({"layers": ["blocks.0.first", "blocks.9.first"]}, "other layers.*2 differ"),
    ],
)
def test_a_prior_for_something_else_is_refused(prior_path: Path, change: dict, message: str) -> None:
    fitting = {"backbone_fingerprint": "f" * 64, "meta_rank": 3, "layers": list(LAYERS)}
    with pytest.raises(UserError, match=message):
        check_prior(load_prior(prior_path), **{**fitting, **change})


def test_a_lora_comes_back_with_diffusers_keys(bank: AdapterBank, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    lora = bank.collapsed("b", metadata={"identity": "b"})
    save_lora(path, lora)
    with safe_open(path, framework="pt") as file:
        assert "transformer.blocks.0.first.lora_A.weight" in file.keys()  # noqa: SIM118
    back = load_lora(path)
    assert back.path == path and back.metadata["identity"] == "b" and list(back.down) == list(LAYERS)
    for name in LAYERS:
        assert torch.equal(back.down[name], lora.down[name]) and torch.equal(back.up[name], lora.up[name])


def test_collapse_is_the_product(bank: AdapterBank) -> None:
    lora = bank.collapsed("b")
    pieces = bank.rows[1].split([6, 8, 6, 20])
    for index, (name, shape) in enumerate(LAYERS.items()):
        mid, up = pieces[2 * index].view(2, 3), pieces[2 * index + 1].view(2, shape.out_features).T
        torch.testing.assert_close(lora.down[name], mid @ bank.meta_down_of(name))
        assert torch.equal(lora.up[name], up)


@pytest.mark.parametrize(("load", "word"), [(load_prior, "prior"), (load_lora, "lora")])
def test_files_that_cannot_be_read_are_refused(load, word: str, prior_path: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.safetensors"
    with pytest.raises(UserError, match=f"file is missing.*bad.safetensors; key: {word}"):
        load(bad)
    for content in (b"", pickle.dumps({"layer": [1.0]}), prior_path.read_bytes()[:-5], prior_path.read_bytes()[:20]):
        bad.write_bytes(content)
        with pytest.raises(UserError, match=f"cannot be read.*whole safetensors file.*key: {word}"):
            load(bad)
    with pytest.raises(UserError, match="file is missing"):
        load(tmp_path)


def test_one_kind_of_file_is_not_taken_for_the_other(bank: AdapterBank, prior_path: Path, tmp_path: Path) -> None:
    save_lora(tmp_path / "lora.safetensors", bank.collapsed("a"))
    with pytest.raises(UserError, match=r"not a Meta-LoRA prior.*metalora-prior-1.*got metalora-lora-1"):
        load_prior(tmp_path / "lora.safetensors")
    save_file({"layer.meta_down.weight": torch.zeros(1, 2)}, tmp_path / "bare", {"format": "metalora-prior-1"})
    with pytest.raises(UserError, match=r"not a Meta-LoRA prior.*says which backbone"):
        load_prior(tmp_path / "bare")
    with pytest.raises(UserError, match="is no LoRA that can be read"):
        load_lora(prior_path)
    save_file({"transformer.layer.lora_A.weight": torch.zeros(1, 2)}, tmp_path / "half.safetensors")
    with pytest.raises(UserError, match="is no LoRA that can be read"):
        load_lora(tmp_path / "half.safetensors")


LIMITED = """
import resource, tempfile
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
with tempfile.TemporaryFile() as file:
    file.write(bytes(1000))
"""


def test_a_disk_that_takes_no_more_is_an_oserror_and_keeps_the_old_file(bank: AdapterBank, prior_path: Path) -> None:
    if not subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, check=False).returncode:
        pytest.skip("this system does not limit the size of files")
    before = prior_path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # no file of this process may grow beyond 100 bytes
    try:
        with pytest.raises(OSError, match="File too large"):
            save_prior(prior_path, bank, backbone="tiny", backbone_fingerprint="f")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert prior_path.read_bytes() == before and len(list(prior_path.parent.iterdir())) == 1


def test_the_same_adapter_gives_the_same_bytes(bank: AdapterBank, tmp_path: Path) -> None:
    metadata = {name: f'{name} "quoted" é\n' for name in "gfedcba"}
    hashes = set()
    for index in range(5):
        save_lora(tmp_path / str(index), bank.collapsed("a", metadata=metadata))
        hashes.add(file_sha256(tmp_path / str(index)))
    assert len(hashes) == 1
    assert load_lora(tmp_path / "0").metadata == {**metadata, "format": "metalora-lora-1"}
