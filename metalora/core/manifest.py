"""manifest.jsonl: what every image of a folder is, one JSON line per image."""

import dataclasses
import json
import math
from codecs import BOM_UTF8
from collections.abc import Iterable
from pathlib import Path

from metalora.core.atomic import write_bytes
from metalora.core.contracts import GeneratedImage
from metalora.core.errors import UserError

FILE_NAME = "manifest.jsonl"


def to_line(image: GeneratedImage) -> str:
    """One line of the manifest, newline included."""
    return json.dumps(dataclasses.asdict(image), ensure_ascii=False) + "\n"


def read_manifest(path: Path, *, cut_allowed: bool = False) -> list[GeneratedImage]:
    """Read a manifest; of several lines about one file the last one counts.

    Args:
        path: the manifest, or the folder that holds it.
        cut_allowed: the writer may have been killed inside the last line; that line is then left out.

    Raises:
        UserError: there is no such manifest, or a line is not one.
    """
    images: dict[str, GeneratedImage] = {}
    for image in read_lines(path, cut_allowed=cut_allowed):
        images.pop(image.file, None)
        images[image.file] = image
    return list(images.values())


def read_lines(path: Path, *, cut_allowed: bool = False) -> list[GeneratedImage]:
    """Every line of a manifest, those about one file too; arguments and errors as of `read_manifest`."""
    path = path / FILE_NAME if path.is_dir() else path
    try:
        lines = path.read_bytes().removeprefix(BOM_UTF8).split(b"\n")  # some editors put that mark before the text
    except OSError as error:
        raise UserError(
            "cannot read the list of images", expected=f"a {FILE_NAME}", got=str(error), key="images"
        ) from error
    images: list[GeneratedImage] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            images.append(_from_line(line.decode()))
        except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
            if cut_allowed and number == len(lines):  # a whole line ends with a newline, so this one was cut
                continue
            raise UserError(
                f"a line of the list of images cannot be read: {path}",
                expected=f"an object with {', '.join(_NEEDED)}, each as GeneratedImage says",
                got=f"{error} in line {number}",
                key="images",
            ) from error
    return images


def inside(folder: Path, file: str) -> Path:
    """The path of a manifest's file. A manifest may be anybody's: its files must lie in its folder.

    Raises:
        UserError: the name leads out of the folder.
    """
    path = folder / file
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"the list of images {folder / FILE_NAME} names a file outside its folder",
            expected="files in it",
            got=file,
            key="images",
        )
    return path


def check_name(*parts: str, key: str = "") -> None:
    """Raise UserError when an image cannot be named after these parts of its path: its folder would be another."""
    if any(part in ("", ".", "..") or "/" in part or "\\" in part for part in parts):
        raise UserError(
            "an image cannot be named after this", expected="names without slashes", got=repr(parts), key=key
        )


_KINDS = {field.name: getattr(field.type, "__args__", (field.type,)) for field in dataclasses.fields(GeneratedImage)}
_NEEDED = tuple(field.name for field in dataclasses.fields(GeneratedImage) if field.default is dataclasses.MISSING)


def _from_line(line: str) -> GeneratedImage:
    given = json.loads(line)
    if not isinstance(given, dict):
        raise ValueError(f"{type(given).__name__} instead of an object")
    values = {name: value for name, value in given.items() if name in _KINDS}
    if missing := [name for name in _NEEDED if name not in values]:
        raise ValueError(f"no {' and no '.join(missing)}")
    size = values["size"]
    if not isinstance(size, list) or len(size) != 2 or any(side != int(side) for side in size):
        raise ValueError(f"size is {size!r}, not height and width")
    values["size"] = (int(size[0]), int(size[1]))
    for name, value in values.items():
        kinds = tuple(_KINDS[name])
        whole = isinstance(value, int) and float in kinds and not isinstance(value, bool)  # 4 for 4.0
        if name != "size" and not whole and type(value) not in kinds:
            raise ValueError(f"{name} is {value!r}")
        if isinstance(value, float) and not math.isfinite(value):  # JSON's readers take NaN
            raise ValueError(f"{name} is {value}")
    return GeneratedImage(**values)


def write_manifest(path: Path, images: Iterable[GeneratedImage]) -> None:
    """Write a manifest atomically."""
    write_bytes(path, "".join(to_line(image) for image in images).encode())
