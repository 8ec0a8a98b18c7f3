"""Atomic writes: a reader sees the old file or the new one, never half of one."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_UMASK = os.umask(0)
os.umask(_UMASK)


def share(path: Path, mode: int) -> None:
    """Give a private temporary file or folder the permissions that `open` or `mkdir` would have given it."""
    path.chmod(mode & ~_UMASK)


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success fsync it and rename it onto `target`.

    Whatever goes wrong inside the block (a full disk included), `target` keeps its old content and the
    temporary file is removed.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=target.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        descriptor = os.open(temporary, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        share(temporary, 0o666)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(target: Path, data: bytes) -> None:
    """Write `data` to `target` atomically."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)


def write_json(target: Path, value: Mapping[str, Any] | list[Any]) -> None:
    """Write `value` as indented JSON with sorted keys, atomically."""
    write_bytes(target, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())
