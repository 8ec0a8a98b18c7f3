"""Atomic writes: a reader sees the old file or the new one, never half of one."""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from metalora.core.errors import UserError

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
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
        _flush(temporary)
        share(temporary, 0o666)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; on success fsync its files and rename it onto `target`, which may be an
    empty folder.

    Whatever goes wrong inside the block, there is no new `target` and the temporary folder is removed; one that a
    killed process left is for `clear_partial`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial"))
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                _flush(path)
        share(temporary, 0o777)
        if target.exists():
            target.rmdir()
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def clear_partial(target: Path) -> None:
    """Remove what killed processes left of `atomic_folder(target)`; nobody else may be writing it."""
    for leftover in target.parent.glob(f".{target.name}.????????.partial"):
        shutil.rmtree(leftover)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a disk that takes no more into one clear line; what `path` held before is still there.

    Raises:
        UserError: the disk is full, over quota, or not writable.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = error.errno if isinstance(error, OSError) else None
        by_text = any(f"(os error {number})" in str(error) for number in _DISK_ERRORS)  # safetensors writes in Rust
        if code not in _DISK_ERRORS and not by_text:
            raise
        raise UserError(
            f"cannot write {path}",
            expected="free space in a writable folder; everything made so far is kept, run the command again",
            got=str(error),
            key="out",
        ) from error


def write_bytes(target: Path, data: bytes) -> None:
    """Write `data` to `target` atomically."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)


def write_json(target: Path, value: Mapping[str, Any] | list[Any]) -> None:
    """Write `value` as indented JSON with sorted keys, atomically."""
    write_bytes(target, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())
