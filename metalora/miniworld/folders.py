"""Folders of rendered photos: whole people at a time, finished ones kept, a manifest last.

What stands in a person's folder depends on the person and the number of photos alone, so a cut run simply goes on.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from metalora.core.atomic import share, write_json
from metalora.core.errors import UserError
from metalora.miniworld.identity import Identity
from metalora.miniworld.renderer import render
from metalora.miniworld.shots import Shot

Progress = Callable[[str, int, int], None]
MANIFEST = "manifest.json"
_PHOTOS_AT_ONCE = 400


@dataclass(frozen=True)
class Photo:
    """One file to render: its name inside the folder, who, how, and the size in pixels."""

    name: str
    person: Identity
    shot: Shot
    height: int
    width: int


def finished(root: Path, *, arguments: Mapping[str, Any], key: str) -> bool:
    """Whether `root` was already written with these arguments.

    Raises:
        UserError: it was written with other arguments.
    """
    path = Path(root) / MANIFEST
    if not path.is_file():
        return False
    found = json.loads(path.read_bytes())
    if found.get("arguments_sha256") != _digest(arguments):
        raise UserError(
            f"the folder {root} was rendered with other settings",
            expected=json.dumps(dict(arguments), sort_keys=True),
            got=json.dumps(found.get("arguments"), sort_keys=True),
            key=key,
        )
    return True


def finish(root: Path, *, arguments: Mapping[str, Any], photos: int) -> None:
    """Write the manifest that marks `root` as complete."""
    os.sync()  # once for thousands of small files, instead of one fsync each
    manifest = {"arguments": dict(arguments), "arguments_sha256": _digest(arguments), "photos": photos}
    write_json(Path(root) / MANIFEST, manifest)


def _digest(arguments: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(arguments), sort_keys=True).encode()).hexdigest()


def write_folders(
    folders: Mapping[Path, Sequence[Photo]], *, title: str = "render", progress: Progress | None = None
) -> None:
    """Render folders of photos as PNG files; each folder appears complete or not at all, complete ones are kept.

    Args:
        folders: photos by the folder they belong to.
        title: what to call this in `progress`.
        progress: called with (title, photos done, photos in all).
    """
    total = sum(len(photos) for photos in folders.values())
    missing = [(path, photos) for path, photos in folders.items() if not _complete(path, photos)]
    done = total - sum(len(photos) for _, photos in missing)
    while missing:
        batch: list[tuple[Path, Sequence[Photo]]] = []
        while missing and sum(len(photos) for _, photos in batch) < _PHOTOS_AT_ONCE:
            batch.append(missing.pop(0))
        pictures = iter(_pictures([photo for _, photos in batch for photo in photos]))
        for path, photos in batch:
            _write_folder(path, [(photo.name, next(pictures)) for photo in photos])
            done += len(photos)
        if progress is not None:
            progress(title, done, total)


def _complete(path: Path, photos: Sequence[Photo]) -> bool:
    return path.is_dir() and {entry.name for entry in path.iterdir()} == {photo.name for photo in photos}


def _pictures(photos: Sequence[Photo]) -> list[np.ndarray]:
    """Render photos of mixed sizes, all of one size at once."""
    pictures: list[np.ndarray] = [np.empty(0)] * len(photos)
    for height, width in sorted({(photo.height, photo.width) for photo in photos}):
        places = [k for k, photo in enumerate(photos) if (photo.height, photo.width) == (height, width)]
        rendered = render(
            [photos[k].person for k in places], [photos[k].shot for k in places], height=height, width=width
        )
        for k, picture in zip(places, rendered, strict=True):
            pictures[k] = picture
    return pictures


def _write_folder(path: Path, named: Sequence[tuple[str, np.ndarray]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        for name, picture in named:
            Image.fromarray(picture).save(temporary / name, compress_level=1)
        share(temporary, 0o777)
        if path.is_dir():
            shutil.rmtree(path)  # the rest of another run, not complete
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
