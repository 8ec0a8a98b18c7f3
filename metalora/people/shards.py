"""One safetensors file of named tensors that knows what it was made from and whether it is whole."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from metalora.core.atomic import write_bytes

_ENTRY = "metalora"
"""The only metadata entry: safetensors writes several in random order, and equal content should be equal bytes."""
_log = logging.getLogger(__name__)


def write_shard(path: Path, tensors: dict[str, Tensor], names: Sequence[Mapping[str, Any]], *, key: str) -> None:
    """Write atomically.

    Args:
        names: one JSON object per item of the shard.
        key: hash of everything the tensors were computed from.

    Raises:
        OSError: a full disk, for one; nothing is left behind.
    """
    about = {"key": key, "names": list(names), "sha256": _digest(tensors, names)}
    # to bytes first: a full disk then is an OSError, not an error of the safetensors library
    write_bytes(
        path, save({name: tensor.contiguous() for name, tensor in tensors.items()}, {_ENTRY: json.dumps(about)})
    )


def read_shard(path: Path, *, key: str) -> tuple[dict[str, Tensor], list[dict[str, Any]]] | None:
    """What `write_shard` wrote, or None when it is not there or not whole; the latter is logged as a warning."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()[_ENTRY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
        if about["key"] == key and about["sha256"] == _digest(tensors, about["names"]):
            return tensors, about["names"]
        problem = "its content does not match its checksum"
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        problem = str(error)
    _log.warning("the cached file %s is damaged (%s); it is made again", path, problem)
    return None


def _digest(tensors: Mapping[str, Tensor], names: Sequence[Mapping[str, Any]]) -> str:
    digest = hashlib.sha256(json.dumps(names, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
