"""What a cell reads: every existing file or folder that its configuration names, and whether it is still the same."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

Stamp = Callable[[str], str]
_NO_INPUT = ("out", "name", "debug", "paths", "trainer", "logger")


def inputs_of(cfg: DictConfig) -> tuple[str, ...] | None:
    """Absolute paths of what exists; not what the project makes itself below `paths` (rendered people, caches).

    Returns:
        None when the configuration has a hole.
    """
    keys = [str(key) for key in cfg if key != "hydra"]  # which nobody has filled in before a launch
    whole = OmegaConf.masked_copy(cfg, keys)
    try:
        typed, meant = (OmegaConf.to_container(whole, resolve=resolve) for resolve in (False, True))
    except OmegaConfBaseException:  # the task says it better
        return None
    assert isinstance(typed, dict) and isinstance(meant, dict)
    places = [cfg.paths.get(key) for key in ("outputs", "data", "cache")]
    own = tuple(os.path.abspath(str(place)) + os.sep for place in places if place)
    found = set()
    for key in typed.keys() - set(_NO_INPUT):
        for written, text in _texts(typed[key], meant[key]):
            path = os.path.abspath(text)
            if text and os.path.exists(path) and not ("${" in written and path.startswith(own)):
                found.add(path)
    return tuple(sorted(found))


def stamp_of(path: str) -> str:
    """Changes with the content of a file or of a folder's files. Nothing is read: that would cost minutes for a base
    model or many photos, and a file that was only touched costs no more than a look at what was made of it."""
    if not os.path.isdir(path):
        return _mark(path)
    digest = hashlib.sha256()
    for folder, folders, files in os.walk(path, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in files if not name.startswith(".")):
            file = os.path.join(folder, name)
            digest.update(f"{os.path.relpath(file, path)}\0{_mark(file)}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _mark(path: str) -> str:
    try:
        found = os.stat(path)
    except OSError:
        return "nothing"
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def _texts(typed: Any, meant: Any) -> Iterator[tuple[str, str]]:
    """Every text of a value, as it was written and as it is meant."""
    if isinstance(meant, Mapping):
        for key, value in meant.items():
            yield from _texts(typed.get(key) if isinstance(typed, Mapping) else typed, value)
    elif isinstance(meant, list):
        for place, value in enumerate(meant):
            yield from _texts(typed[place] if isinstance(typed, list) else typed, value)
    elif isinstance(meant, str):
        yield str(typed), meant
