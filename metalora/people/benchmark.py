"""The benchmark: Meta-PHD's folder layout (section 4.1) and its prompts (App. M), real people or the mini world's."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from metalora.core.errors import UserError
from metalora.core.plain_yaml import read_yaml
from metalora.people.folder import (
    IDENTITIES_FILE,
    SkippedFile,
    list_folder,
    person_photos,
    read_class_nouns,
)

Part = Literal["unsplash", "ffhq"]
Kind = Literal["frontal", "recontextualized", "stylized"]
KINDS: tuple[Kind, ...] = ("frontal", "recontextualized", "stylized")
CLIP = "clip"
"""Both kinds that prompt following is measured on: recontextualized and stylized."""
CLASS_NOUNS = ("man", "woman")
_PRONOUNS = {"man": "his", "woman": "her"}
_META_PHD = {"unsplash people": 16, "unsplash photos": 98, "ffhq man": 30, "ffhq woman": 30}


@dataclass(frozen=True)
class Subject:
    """One person of the benchmark.

    `reference` is the only photo a model may see: the first by name. `test_photos` are the others (R-FaceSim compares
    with them); people of the ffhq part have none.
    """

    identity: str
    class_noun: str
    reference: Path
    test_photos: tuple[Path, ...]
    part: Part


@dataclass(frozen=True)
class Benchmark:
    """The people of a benchmark, what was passed over, and in what its counts differ from Meta-PHD's."""

    subjects: tuple[Subject, ...]
    skipped: tuple[SkippedFile, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Prompt:
    """One prompt for one class. `reconstructed`: the wording is inferred, not the authors' own."""

    id: str
    kind: Kind
    text: str
    reconstructed: bool


def load_benchmark(root: Path, *, key: str = "benchmark.root", problems: list[UserError] | None = None) -> Benchmark:
    """Read ROOT/unsplash/IDENTITY/*, ROOT/ffhq/man/* and ROOT/ffhq/woman/*; one of the two parts may be missing.

    The class nouns of the unsplash people stand in identities.json ({"IDENTITY": "woman", ...}), in ROOT or in
    ROOT/unsplash. Identities of the ffhq part are named after their file: ffhq-woman-00042.

    Args:
        problems: where to put what is wrong with a single person, who is then left out, instead of raising it.

    Raises:
        UserError: no such folder, neither part, a person without photos or with only one where several are needed, a
            person without a class noun.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"there is no benchmark {root}", expected="a folder with unsplash and ffhq in it", key=key)
    unsplash, skipped = _unsplash(root, key=key, problems=problems)
    ffhq, skipped_ffhq = _ffhq(root / "ffhq", key=key)
    subjects = unsplash + ffhq
    if not subjects:
        raise UserError(
            f"there is nobody in the benchmark {root}",
            expected="unsplash/IDENTITY/*.jpg and ffhq/{man,woman}/*.png below it",
            got=", ".join(sorted(path.name for path in root.iterdir())) or "an empty folder",
            key=key,
        )
    subjects = _one_per_name(subjects, root=root, key=key, problems=problems)
    return Benchmark(subjects, skipped + skipped_ffhq, _differences(subjects))


def _one_per_name(
    subjects: Sequence[Subject], *, root: Path, key: str, problems: list[UserError] | None
) -> tuple[Subject, ...]:
    """Names become folder names of outputs, which some file systems compare without case."""
    first: dict[str, Subject] = {}
    for subject in subjects:
        other = first.setdefault(subject.identity.casefold(), subject)
        if other is subject:
            continue
        error = UserError(
            f"two people in {root} have the same name",
            expected="names that differ in more than case and file ending",
            got=f"{_place(other)} and {_place(subject)}",
            key=key,
        )
        if problems is None:
            raise error
        problems.append(error)
    return tuple(first.values())


def _place(subject: Subject) -> Path:
    return subject.reference if subject.part == "ffhq" else subject.reference.parent


def _unsplash(
    root: Path, *, key: str, problems: list[UserError] | None
) -> tuple[tuple[Subject, ...], tuple[SkippedFile, ...]]:
    part = root / "unsplash"
    if not part.is_dir():
        return (), ()
    nouns = read_class_nouns(root, key=key) | read_class_nouns(part, key=key)
    photos, folders, skipped = list_folder(part, key=key)
    skipped += tuple(SkippedFile(path, "a photo outside a person's folder") for path in photos)
    subjects: list[Subject] = []
    for folder in folders:
        try:
            subject, skipped_inside = _person(folder, nouns.get(folder.name), key=key)
        except UserError as error:
            if problems is None:
                raise
            problems.append(error)
            continue
        skipped += skipped_inside
        subjects.append(subject)
    return tuple(subjects), skipped


def _person(folder: Path, noun: str | None, *, key: str) -> tuple[Subject, tuple[SkippedFile, ...]]:
    own, skipped = person_photos(folder, key=key)
    if len(own) < 2:
        raise UserError(
            f"the benchmark's person {folder.name} has one photo",
            expected="a reference and at least one test photo, or there is nothing to measure R-FaceSim with",
            got=", ".join(path.name for path in own),
            key=key,
        )
    if noun not in CLASS_NOUNS:
        raise UserError(
            f"the benchmark's person {folder.name} has no class noun",
            expected=f'"{folder.name}": "man" or "woman" in {folder.parent / IDENTITIES_FILE}',
            got=noun or "no entry",
            key=key,
        )
    return Subject(folder.name, noun, own[0], own[1:], "unsplash"), skipped


def _ffhq(part: Path, *, key: str) -> tuple[tuple[Subject, ...], tuple[SkippedFile, ...]]:
    if not part.is_dir():
        return (), ()
    photos, folders, skipped = list_folder(part, key=key)
    skipped += tuple(SkippedFile(path, "a photo outside man and woman") for path in photos)
    skipped += tuple(SkippedFile(path, "neither man nor woman") for path in folders if path.name not in CLASS_NOUNS)
    subjects: list[Subject] = []
    for class_noun in CLASS_NOUNS:
        if not (part / class_noun).is_dir():
            continue
        own, skipped_inside = person_photos(part / class_noun, key=key)
        skipped += skipped_inside
        subjects += [Subject(f"ffhq-{class_noun}-{path.stem}", class_noun, path, (), "ffhq") for path in own]
    return tuple(subjects), skipped


def _differences(subjects: tuple[Subject, ...]) -> tuple[str, ...]:
    unsplash = [subject for subject in subjects if subject.part == "unsplash"]
    found = {
        "unsplash people": len(unsplash),
        "unsplash photos": sum(1 + len(subject.test_photos) for subject in unsplash),
        **{f"ffhq {n}": sum(s.part == "ffhq" and s.class_noun == n for s in subjects) for n in CLASS_NOUNS},
    }
    return tuple(
        f"{name}: {found[name]}, Meta-PHD has {count}" for name, count in _META_PHD.items() if found[name] != count
    )


class PromptSets:
    """The prompts of a benchmark by kind, in the order of their file."""

    def __init__(self, entries: tuple[tuple[Prompt, str | None], ...]) -> None:
        self._entries = entries

    def of(self, kind: str, class_noun: str) -> tuple[Prompt, ...]:
        """The prompts of a kind (one of `KINDS`, or "clip") for a class, with its words filled in."""
        words = {"noun": class_noun, "pronoun": _PRONOUNS.get(class_noun, "their")}
        return tuple(
            Prompt(prompt.id, prompt.kind, prompt.text.format(**words), prompt.reconstructed)
            for prompt, only_class in self._entries
            if prompt.kind in _kinds(kind) and only_class in (None, class_noun)
        )

    def ids(self, kind: str) -> frozenset[str]:
        """The ids of a kind (one of `KINDS`, or "clip") over all classes."""
        return frozenset(prompt.id for prompt, _ in self._entries if prompt.kind in _kinds(kind))

    def kinds(self) -> dict[str, Kind]:
        """The kind of every prompt by its id."""
        return {prompt.id: prompt.kind for prompt, _ in self._entries}

    def texts(self) -> dict[tuple[str, str], str]:
        """The words of every prompt by its id and class noun."""
        return {
            (prompt.id, noun): prompt.text for noun in CLASS_NOUNS for kind in KINDS for prompt in self.of(kind, noun)
        }

    def ids_by_text(self) -> dict[str, str]:
        """The id of every prompt by its words, those of all classes."""
        return {
            prompt.text: prompt.id for noun in CLASS_NOUNS for kind in (*KINDS, CLIP) for prompt in self.of(kind, noun)
        }


def _kinds(kind: str) -> tuple[str, ...]:
    assert kind in (*KINDS, CLIP), kind
    return ("recontextualized", "stylized") if kind == CLIP else (kind,)


def load_prompts(path: Path, *, key: str = "benchmark.prompts") -> PromptSets:
    """Read a prompt file: `prompts` is a list of {id, kind, text[, class_noun][, reconstructed]}.

    In `text`, {noun} stands for the class noun and {pronoun} for his or her; a prompt with a class_noun is only for it.

    Raises:
        UserError: the file is missing, is not of that form, or uses an id twice.
    """
    import yaml

    expected = "prompts: a list of {id, kind, text}"
    try:
        content = read_yaml(Path(path).read_text(encoding="utf-8"))
        items = content["prompts"]
        entries = tuple((_prompt(item), item.get("class_noun")) for item in items)
    except OSError as error:
        raise UserError(
            f"cannot read the prompts {path}", expected=expected, got=error.strerror or "", key=key
        ) from None
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"cannot use the prompts {path}", expected=expected, got=reason, key=key) from None
    ids = [prompt.id for prompt, _ in entries]
    twice = sorted({id_ for id_ in ids if ids.count(id_) > 1})
    if twice or not ids:
        got = f"{', '.join(twice)} twice" if twice else "an empty list"
        raise UserError(f"cannot use the prompts {path}", expected="one id per prompt", got=got, key=key)
    return PromptSets(entries)


def _prompt(item: Mapping[str, Any]) -> Prompt:
    unknown = set(item) - {"id", "kind", "text", "class_noun", "reconstructed"}
    if unknown:
        raise ValueError(f"unknown entry {sorted(unknown)[0]}")
    if item["kind"] not in KINDS:
        raise ValueError(f"kind {item['kind']}, not one of {', '.join(KINDS)}")
    item["text"].format(noun="", pronoun="")  # raises on any other placeholder
    _check_class(item["text"], item.get("class_noun"))
    return Prompt(str(item["id"]), item["kind"], item["text"], bool(item.get("reconstructed", False)))


def _check_class(text: str, class_noun: str | None) -> None:
    """Raise ValueError when nobody could tell whom a prompt is about: scores are kept by class."""
    if class_noun is None:
        if "{noun}" not in text:
            raise ValueError(f"no class in the prompt {text!r}: neither {{noun}} nor a class_noun")
    elif class_noun not in CLASS_NOUNS:
        raise ValueError(f"class_noun {class_noun}, not one of {', '.join(CLASS_NOUNS)}")
    elif "{noun}" not in text and not re.search(rf"\b{class_noun}\b", text):
        raise ValueError(f"no {class_noun} in the prompt {text!r}, whose class_noun it is")


def benchmark_version(name: str, subjects: Sequence[Subject], prompts: PromptSets) -> str:
    """NAME@DIGEST over the words of all prompts and the bytes of all photos: equal only for the same benchmark."""

    def sha256(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    people = sorted(
        (s.identity, s.class_noun, s.part, sha256(s.reference), *map(sha256, s.test_photos)) for s in subjects
    )
    words = sorted((*key, text) for key, text in prompts.texts().items())
    return f"{name}@{hashlib.sha256(json.dumps([people, words]).encode()).hexdigest()[:12]}"
