"""Safetensors files whose bytes depend on their content alone.

The safetensors library writes the header's metadata in an order that differs from process to process; a resumed run
must end with the very bytes of the uncut one.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from metalora.core.atomic import write_bytes

_LENGTH = 8
"""The header's length is a little-endian 64-bit number; the data behind the header is aligned to as many bytes."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, atomically; equal content gives equal bytes.

    Raises:
        OSError: the disk is full or not writable; `path` keeps its old content.
    """
    plain = save(dict(tensors))
    start = _LENGTH + int.from_bytes(plain[:_LENGTH], "little")
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(plain[_LENGTH:start])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH)
    write_bytes(path, len(text).to_bytes(_LENGTH, "little") + text + plain[start:])
