"""The weights in the package are the ones that provenance.json speaks of, and small enough to ship."""

import hashlib
import json
from pathlib import Path

import metalora

WEIGHTS = Path(metalora.__file__).parent / "miniworld" / "weights"


def test_every_model_is_the_one_whose_making_is_told() -> None:
    told = json.loads((WEIGHTS / "provenance.json").read_text())["sha256"]
    assert any(name.startswith("flux/transformer/") for name in told)
    for name, digest in told.items():
        assert hashlib.sha256((WEIGHTS / name).read_bytes()).hexdigest() == digest, name
    assert {str(path.relative_to(WEIGHTS)) for path in WEIGHTS.rglob("*.safetensors")} <= set(told)


def test_all_of_it_is_20_mb_at_most() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) <= 20 << 20
