"""From a path to people: one photo, one person's folder, or a folder of people."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from metalora.core.errors import UserError
from metalora.people.photos import SUFFIXES

IDENTITIES_FILE = "identities.json"
"""Optional file beside the people's folders: {"IDENTITY": "CLASS NOUN", ...}."""


_MANIFEST = "manifest.json"  # beside rendered people: what made them


@dataclass(frozen=True)
class PersonFolder:
    """One person's photos, sorted by name; `class_noun` is None where no identities.json tells it."""

    identity: str
    class_noun: str | None
    photos: tuple[Path, ...]


def photos_digest(photos: Iterable[Path]) -> str:
    """sha256 over the folder name, name and size of photo files: tells sets apart without reading thousands of photos.

    A photo replaced by another of exactly the same size is not noticed.
    """
    lines = sorted(f"{photo.parent.name}/{photo.name}:{photo.stat().st_size}" for photo in photos)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class SkippedFile:
    """Something in a people folder that is not used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class PeopleScan:
    """The people found under a path, sorted by identity, and everything there that was passed over."""

    people: tuple[PersonFolder, ...]
    skipped: tuple[SkippedFile, ...]


def scan_people(root: Path, *, key: str = "image") -> PeopleScan:
    """Find the people under a path.

    A file is one person with one photo, named after it. A folder that holds photos is one person, named after the
    folder. A folder that holds folders is one person per folder; an identities.json in it may give class nouns.

    Args:
        root: a photo, a person's folder, or a folder of people.
        key: the configuration key that named it, for error messages.

    Raises:
        UserError: nothing there, a person without photos, photos and folders mixed, two names that differ only in
            case, an identities.json that cannot be read or names nobody.
    """
    root = Path(root)
    if root.is_file():
        return PeopleScan((PersonFolder(root.stem, None, (root,)),), ())
    if not root.is_dir():
        raise UserError(f"there is no {root}", expected="a photo, a person's folder or a folder of people", key=key)
    photos, folders, skipped = list_folder(root, key=key)
    if photos and folders:
        raise UserError(
            f"the folder {root} mixes photos and folders",
            expected="photos of one person, or one folder per person",
            got=f"{len(photos)} photos beside {len(folders)} folders, first {photos[0].name} and {folders[0].name}",
            key=key,
        )
    nouns = read_class_nouns(root, key=key)
    if photos:
        person = PersonFolder(root.resolve().name, nouns.get(root.resolve().name), photos)
        return PeopleScan((person,), skipped)
    if not folders:
        raise UserError(
            f"there are no photos in {root}", expected="photos or one folder per person", got=describe(skipped), key=key
        )
    unknown = sorted(nouns.keys() - {folder.name for folder in folders})
    if unknown:
        raise UserError(
            f"{root / IDENTITIES_FILE} names people who have no folder",
            expected="folder names",
            got=", ".join(unknown),
            key=key,
        )
    people: list[PersonFolder] = []
    for folder in folders:
        own_photos, skipped_inside = person_photos(folder, key=key)
        skipped += skipped_inside
        people.append(PersonFolder(folder.name, nouns.get(folder.name), own_photos))
    check_unique([person.identity for person in people], where=root, key=key)
    return PeopleScan(tuple(people), skipped)


def list_folder(folder: Path, *, key: str) -> tuple[tuple[Path, ...], tuple[Path, ...], tuple[SkippedFile, ...]]:
    """Photos, folders and skipped files directly in a folder, each sorted by name."""
    photos: list[Path] = []
    folders: list[Path] = []
    skipped: list[SkippedFile] = []
    try:
        entries = sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}", got=error.strerror or str(error), key=key) from None
    for path in entries:
        if path.name.startswith("."):
            skipped.append(SkippedFile(path, "hidden"))
        elif path.is_dir():
            folders.append(path)
        elif path.suffix.lower() in SUFFIXES:
            photos.append(path)
        elif path.name not in (IDENTITIES_FILE, _MANIFEST):
            skipped.append(SkippedFile(path, f"not a photo ({path.suffix or 'no file ending'})"))
    return tuple(photos), tuple(folders), tuple(skipped)


def person_photos(folder: Path, *, key: str) -> tuple[tuple[Path, ...], tuple[SkippedFile, ...]]:
    """One person's photos and what was skipped beside them.

    Raises:
        UserError: the person has no photo.
    """
    photos, folders, skipped = list_folder(folder, key=key)
    skipped += tuple(SkippedFile(path, "a folder inside a person's folder") for path in folders)
    if not photos:
        raise UserError(
            f"the person {folder.name} has no photos",
            expected=f"at least one photo in {folder}",
            got=describe(skipped),
            key=key,
        )
    return photos, skipped


def read_class_nouns(root: Path, *, key: str) -> dict[str, str]:
    """Class noun per identity from identities.json, empty when there is none.

    Raises:
        UserError: the file is not a JSON object of strings.
    """
    path = root / IDENTITIES_FILE
    if not path.is_file():
        return {}
    expected = 'a JSON object like {"anna": "woman", "ben": "man"}'
    try:
        nouns = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}", expected=expected, got=str(error), key=key) from None
    if not isinstance(nouns, dict):
        raise UserError(f"cannot use {path}", expected=expected, got=type(nouns).__name__, key=key)
    for identity, noun in nouns.items():
        if not isinstance(noun, str) or not noun.strip():
            raise UserError(f"cannot use {path}", expected=expected, got=f"{identity}: {noun!r}", key=key)
    return nouns


def check_unique(identities: list[str], *, where: Path, key: str) -> None:
    """Names become folder names of outputs, which some file systems compare without case.

    Raises:
        UserError: two names are the same but for case.
    """
    seen: dict[str, str] = {}
    for identity in identities:
        other = seen.setdefault(identity.casefold(), identity)
        if other is not identity:
            raise UserError(
                f"two people in {where} have the same name",
                expected="names that differ in more than case",
                got=f"{other} and {identity}",
                key=key,
            )


def describe(skipped: tuple[SkippedFile, ...]) -> str:
    """What was there instead of photos, for an error message."""
    if not skipped:
        return "an empty folder"
    return f"{len(skipped)} other files, first {skipped[0].path.name}: {skipped[0].reason}"
