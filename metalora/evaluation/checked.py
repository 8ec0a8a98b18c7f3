"""Whether a folder of images is what its benchmark asks for: each line against the benchmark, each cell there once."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from metalora.core.contracts import GeneratedImage
from metalora.core.errors import UserError
from metalora.core.manifest import FILE_NAME, inside, read_lines
from metalora.evaluation.score_table import BASE, Subject, base_name, base_setting

Cell = tuple[str, str, int]
"""Identity (of the base: class noun), prompt id, seed."""


@dataclass(frozen=True)
class Checked:
    """What lines of a manifest are held against.

    Args:
        subjects: the benchmark's people.
        texts: words of a prompt by (prompt id, class noun).
        version: of the benchmark, computed only when a line names one.
        file: the benchmark's prompts, for messages.
    """

    subjects: Sequence[Subject]
    texts: Mapping[tuple[str, str], str]
    version: Callable[[], str]
    file: Path

    @cached_property
    def _people(self) -> dict[str, Subject]:
        return {subject.identity: subject for subject in self.subjects}

    @cached_property
    def _photos(self) -> dict[str, str]:
        return {s.identity: hashlib.sha256(s.reference.read_bytes()).hexdigest() for s in self.subjects}

    @cached_property
    def _version(self) -> str:
        return self.version()

    def fill(self, record: GeneratedImage) -> GeneratedImage:
        """The line with its class noun and prompt filled in.

        Raises:
            UserError: of nobody in the benchmark, drawn for another benchmark, of another class than the person, from
                another photo or other words than the benchmark's, or of no class.
        """
        subject = None if record.method == BASE else self._people.get(record.identity)
        if subject is None and record.method != BASE:
            raise UserError(
                f"the image {record.file} is of somebody who is not in the benchmark",
                expected=f"an identity of the benchmark, such as {min(self._people, default='none')}",
                got=record.identity,
                key="benchmark",
            )
        noun = record.class_noun or (subject.class_noun if subject else "")
        text = self.texts.get((record.prompt_id, noun))
        where = f"{record.file} of {record.identity}"
        if not noun:
            raise UserError(
                f"the image {where} is of no class", expected="class_noun: man or woman", got="none", key=FILE_NAME
            )
        if record.benchmark and record.benchmark != self._version:
            raise UserError(
                f"the image {where} was drawn for another benchmark, or another version of it",
                expected=self._version,
                got=record.benchmark,
                key="benchmark",
            )
        if subject is not None and noun != subject.class_noun:
            raise UserError(
                f"the image {where} is of another class than the person",
                expected=subject.class_noun,
                got=noun,
                key=FILE_NAME,
            )
        if record.prompt and text is not None and record.prompt != text:
            raise UserError(
                f"the image {where} was drawn from other words than the benchmark's",
                expected=f"{text!r} for {record.prompt_id} in {self.file}",
                got=repr(record.prompt),
                key="benchmark",
            )
        if subject is not None and record.reference_sha256 and record.reference_sha256 != self._photos[record.identity]:
            raise UserError(
                f"the image {where} was drawn from another photo than the benchmark's reference",
                expected=f"{subject.reference.parent.name}/{subject.reference.name}, "
                f"sha256 {self._photos[record.identity]}",
                got=f"{record.reference}, sha256 {record.reference_sha256}",
                key="benchmark.root",
            )
        return dataclasses.replace(record, class_noun=noun, prompt=record.prompt or text or "")


@dataclass(frozen=True)
class Coverage:
    """What is wrong with the cells of a folder, by method, rank and iterations; every list is sorted."""

    missing: Mapping[str, tuple[Cell, ...]]
    doubled: Mapping[str, tuple[Cell, ...]]
    beyond: int
    """Images of cells that the protocol does not ask for; they are scored too."""

    @property
    def whole(self) -> bool:
        """Whether every cell is there exactly once."""
        return not any(self.missing.values()) and not any(self.doubled.values())

    def lines(self) -> list[str]:
        """Every missing and doubled cell, one line per method, person and kind of fault."""
        found = []
        for fault, methods in (("missing", self.missing), ("more than once", self.doubled)):
            for method, cells in methods.items():
                for identity in sorted({cell[0] for cell in cells}):
                    prompts: dict[str, list[str]] = {}
                    for _, prompt_id, seed in (cell for cell in cells if cell[0] == identity):
                        prompts.setdefault(prompt_id, []).append(str(seed))
                    told = "; ".join(f"{prompt_id} seed {' '.join(seeds)}" for prompt_id, seeds in prompts.items())
                    found.append(f"{fault}: {method}, {identity}: {told}")
        return found

    def error(self) -> UserError:
        """In one line."""
        counts = [
            f"{sum(map(len, methods.values()))} {fault}"
            for fault, methods in (("missing", self.missing), ("more than once", self.doubled))
            if any(methods.values())
        ]
        return UserError(
            "the images are not one per identity, prompt and seed",
            expected="every cell of the benchmark once (protocol, classes), or allow_missing=true to score what is"
            " there (of several images of a cell the last counts)",
            got=f"{' and '.join(counts)}, first {self.lines()[0]}"[:400],
            key="images, allow_missing",
        )


def coverage(records: Sequence[GeneratedImage], *, wanted: Collection[Cell], base: Collection[Cell]) -> Coverage:
    """Hold every method, rank and iteration of a folder against the cells that are asked for.

    Args:
        records: every line of the manifests.
        wanted: cells of the people.
        base: cells of the untouched base, whose identity is the class noun; asked for only where images of it are.
    """
    groups: dict[tuple[str, int, int, str], list[Cell]] = {}
    for record in records:
        of_base = record.method == BASE
        # one folder may hold several base models, or one of them drawn in several ways
        group = (record.method, record.rank, record.iterations, base_name(record) if of_base else "")
        who = record.class_noun if of_base else record.identity
        groups.setdefault(group, []).append((who, record.prompt_id, record.seed))
    missing, doubled, beyond = {}, {}, 0
    for group, cells in groups.items():
        asked = set(base if group[0] == BASE else wanted)
        counts = Counter(cells)
        missing[_group_name(*group)] = tuple(sorted(asked - set(counts)))
        doubled[_group_name(*group)] = tuple(sorted(cell for cell, count in counts.items() if count > 1))
        beyond += sum(count for cell, count in counts.items() if cell not in asked)
    return Coverage(missing, doubled, beyond)


def _group_name(method: str, rank: int, iterations: int, base: str) -> str:
    parts = (method, f"rank {rank}" if rank else "", f"at {iterations}" if iterations else "", base)
    return " ".join(part for part in parts if part)


def every_line(folders: Sequence[Path], *, bases_may_differ: bool = False) -> list[GeneratedImage]:
    """Every line of the folders' manifests. The untouched base may lie in several of them: of lines about one cell of
    it with the same bytes the first alone is given.

    Args:
        bases_may_differ: give all lines about one cell of the base, whatever its files hold.

    Raises:
        UserError: no manifest; one file for two images, unless they are the same line; a file outside its folder; two
            different images of one cell of the base.
    """
    records = []
    bases: dict[tuple[Any, ...], Path] = {}
    for folder in folders:
        seen: dict[str, GeneratedImage] = {}
        for record in read_lines(folder):
            path = inside(folder, record.file)
            other = seen.setdefault(record.file, record)
            if other != record:
                raise UserError(
                    f"two lines name one file in {folder / FILE_NAME}",
                    expected="a file for every image",
                    got=f"{record.file} for {_cell(other)} and for {_cell(record)}",
                    key="images",
                )
            if record.method == BASE and (first := bases.setdefault(_base_cell(record), path)) is not path:
                if _same(first, path):
                    continue
                if not bases_may_differ:
                    raise _two_bases(record, first, path)
            records.append(record)
    return records


def _base_cell(record: GeneratedImage) -> tuple[Any, ...]:
    return (*base_setting(record), record.class_noun, record.prompt_id, record.seed)


def _same(one: Path, other: Path) -> bool:
    """Whether two files hold the same bytes; scoring tells which is gone."""
    if not (one.is_file() and other.is_file()) or one.samefile(other):
        return True
    return hashlib.sha256(one.read_bytes()).digest() == hashlib.sha256(other.read_bytes()).digest()


def _two_bases(record: GeneratedImage, one: Path, other: Path) -> UserError:
    return UserError(
        f"there are two different images of the untouched base for {_cell(record)}",
        expected=f"one, or names of base models that tell them apart (both are of {base_name(record)}); or"
        " allow_missing=true to compare each folder with its own",
        got=f"{one} and {other}",
        key="images, base_images, allow_missing",
    )


def _cell(record: GeneratedImage) -> str:
    return f"{record.identity}, {record.prompt_id}, seed {record.seed}"
