"""What a run's numbers depend on, as plain values: two runs with equal values make equal files."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from metalora.adapters.artifacts import opened
from metalora.core.contracts import Backbone, TrainingPerson
from metalora.core.errors import UserError

METADATA_KEY = "configuration"


def people_hash(people: Iterable[TrainingPerson]) -> str:
    """A hash of names, captions, shapes and latents."""
    digest = hashlib.sha256()
    for person in people:
        digest.update(json.dumps([person.identity, person.caption]).encode())
        for image in person.images:
            digest.update(json.dumps(image.shape).encode())
            digest.update(_bytes(image.latents_2CHW))
    return digest.hexdigest()[:16]


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """A hash of named tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(_bytes(tensors[name]))
    return digest.hexdigest()[:16]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().float().cpu().contiguous().numpy().tobytes()


def to_metadata(configuration: Mapping[str, Any]) -> dict[str, str]:
    """The entry of a safetensors header that says how the file was made."""
    return {METADATA_KEY: json.dumps(configuration, sort_keys=True)}


def read_metadata(path: Path) -> dict[str, str]:
    """The header of a safetensors file.

    Raises:
        UserError: not a whole safetensors file.
    """
    with opened(path, key="out") as file:
        return file.metadata() or {}


def check_file(path: Path, wanted: Mapping[str, Any]) -> None:
    """Refuse a file that another configuration made.

    Raises:
        UserError: naming the keys that differ.
    """
    check_same(wanted, json.loads(read_metadata(path).get(METADATA_KEY, "{}")), where=path)


def check_same(wanted: Mapping[str, Any], found: Mapping[str, Any], *, where: Path) -> None:
    """Refuse to mix two configurations in one folder.

    Raises:
        UserError: naming every key that differs.
    """
    differing = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    if differing:
        raise UserError(
            f"{where} was made under another configuration",
            expected=", ".join(f"{key}={_short(found.get(key))}" for key in differing),
            got=", ".join(f"{key}={_short(wanted.get(key))}" for key in differing),
            key=f"{', '.join(differing)}, or another out",
        )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def quantization_of(backbone: Backbone) -> dict[str, str]:
    """The one way to save memory that changes numbers, for a run's configuration; nothing at full precision."""
    kind = backbone.memory.quantization
    return {} if kind is None else {"quantization": kind}
