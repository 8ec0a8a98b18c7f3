"""The weights in the package are the ones that provenance.json speaks of, and small enough to ship."""

import hashlib
import json
from pathlib import Path

import metalora
from metalora.adapters.artifacts import read_tensors
from metalora.adapters.face_adapter import load_face_adapter
from metalora.backbones.fingerprint import fingerprint

WEIGHTS = Path(metalora.__file__).parent / "miniworld" / "weights"


def test_every_model_is_the_one_whose_making_is_told() -> None:
    told = {
        (path.parent / name).relative_to(WEIGHTS).as_posix(): digest
        for path in WEIGHTS.rglob("provenance.json")
        for name, digest in json.loads(path.read_text())["sha256"].items()
    }
    assert any(name.startswith("flux/transformer/") for name in told)
    assert "ip_adapter/model.safetensors" in told
    for name, digest in told.items():
        assert hashlib.sha256((WEIGHTS / name).read_bytes()).hexdigest() == digest, name
    assert {path.relative_to(WEIGHTS).as_posix() for path in WEIGHTS.rglob("*.safetensors")} <= set(told)


def test_all_of_it_is_20_mb_at_most() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) <= 20 << 20


def test_the_face_adapter_belongs_to_the_base_and_the_face_network_beside_it() -> None:
    path = WEIGHTS / "ip_adapter" / "model.safetensors"
    adapter = load_face_adapter(path, backbone_fingerprint=fingerprint(WEIGHTS / "flux" / "transformer"))
    header = read_tensors(path, what="face adapter")[1]
    face = (WEIGHTS / "face" / "model.safetensors").read_bytes()
    assert header["face_sha256"] == hashlib.sha256(face).hexdigest()
    assert int(header["iterations"]) >= 10_000
    assert all(block.to_out.weight.abs().max() > 0 for block in adapter.blocks)
