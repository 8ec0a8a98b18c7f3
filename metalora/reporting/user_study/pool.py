"""Which finished images a study can draw on: one per method, person, prompt and seed, from any number of folders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from metalora.core.contracts import GeneratedImage
from metalora.core.errors import UserError
from metalora.core.manifest import FILE_NAME, inside, read_manifest

BASE = "base"
ORDER = ("instantid", "photomaker", "pulid", "lora", "lora_aug", "meta_lora")
"""Methods in the order of the paper's tables; others come first, by name."""
_SAMPLING = ("lora_sha256", "base_model", "steps", "guidance", "size", "strength", "start_sha256", "denoise")


@dataclass(frozen=True)
class Pool:
    """Images by (method, identity, prompt id, seed), prompts by (identity, prompt id), and how each method drew.

    `left_out` counts images that are not of the rank, the checkpoint or the methods asked for.
    """

    files: Mapping[tuple[str, str, str, int], Path]
    prompts: Mapping[tuple[str, str], str]
    facts: Mapping[str, Mapping[str, Any]]
    left_out: int

    @property
    def methods(self) -> tuple[str, ...]:
        """Every method there is an image of, in the paper's order."""
        found = {method for method, *_ in self.files}
        return tuple(sorted(found - set(ORDER))) + tuple(method for method in ORDER if method in found)

    def seeds(self, method: str, identity: str, prompt_id: str) -> frozenset[int]:
        """The seeds a method has for a person and a prompt."""
        return self._seeds.get((method, identity, prompt_id), frozenset())

    @cached_property
    def _seeds(self) -> dict[tuple[str, str, str], frozenset[int]]:
        known: dict[tuple[str, str, str], frozenset[int]] = {}
        for method, identity, prompt_id, seed in self.files:
            known[method, identity, prompt_id] = known.get((method, identity, prompt_id), frozenset()) | {seed}
        return known


def find_folders(given: Sequence[Path], *, key: str = "images") -> tuple[Path, ...]:
    """Folders with a manifest.jsonl: those given, and those directly inside a given one.

    Raises:
        UserError: nothing given, a folder that is not there, or one with no manifest in or directly below it.
    """
    if not given:
        raise UserError("no images to build a study from", expected=f"folders with a {FILE_NAME}", key=key)
    found: list[Path] = []
    for folder in given:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}", expected=f"a folder with a {FILE_NAME}", key=key)
        inside = [folder] if (folder / FILE_NAME).is_file() else sorted(p.parent for p in folder.glob(f"*/{FILE_NAME}"))
        if not inside:
            raise UserError(f"no {FILE_NAME} in {folder} or directly below it", expected="generated images", key=key)
        found += [path for path in inside if path not in found]
    return tuple(found)


def read_pool(folders: Sequence[Path], *, rank: int, checkpoints: Mapping[str, int]) -> Pool:
    """Read every manifest and keep one image per method, person, prompt and seed.

    Args:
        folders: as `find_folders` returns them.
        rank: of a method that has LoRAs, only this rank's images count.
        checkpoints: method to the iterations whose images count; a method not named must have one checkpoint only.

    Raises:
        UserError: two prompts under one name, two different images for one place, several checkpoints, no image at all.
    """
    records = [(folder, image) for folder in folders for image in read_manifest(folder) if image.method != BASE]
    wanted = [
        (f, i) for f, i in records if i.rank in (0, rank) and i.iterations == checkpoints.get(i.method, i.iterations)
    ]
    _one_checkpoint([image for _, image in wanted])
    files: dict[tuple[str, str, str, int], tuple[Path, GeneratedImage]] = {}
    prompts: dict[tuple[str, str], tuple[str, Path]] = {}
    for folder, image in wanted:
        text, first = prompts.setdefault((image.identity, image.prompt_id), (image.prompt, folder))
        if text != image.prompt:
            raise UserError(
                f"two prompts go by the name {image.prompt_id} for {image.identity}",
                expected=f"the one of {first}: {text!r}",
                got=f"{image.prompt!r} in {folder}",
                key="images",
            )
        place = (image.method, image.identity, image.prompt_id, image.seed)
        path = inside(folder, image.file)
        known_path, known = files.setdefault(place, (path, image))
        if known is not image and _drawn(known) != _drawn(image):
            raise UserError(
                f"two different images of {image.method} for {image.identity}, {image.prompt_id}, seed {image.seed}",
                expected="one",
                got=f"{known_path} and {path}",
                key="images",
            )
    if not files:
        got = ", ".join(sorted({f"{i.method} rank {i.rank} at {i.iterations}" for _, i in records})) or "none"
        raise UserError(
            "no images to build a study from",
            expected=f"rank {rank} and the checkpoints",
            got=got,
            key="images, rank, checkpoints",
        )
    facts: dict[str, dict[str, Any]] = {}
    for (method, *_), (_, image) in files.items():
        facts.setdefault(
            method, {k: getattr(image, k) for k in ("rank", "iterations", "base_model", "steps", "guidance")}
        )
    return Pool(
        {place: path for place, (path, _) in files.items()},
        {name: text for name, (text, _) in prompts.items()},
        facts,
        len(records) - len(wanted),
    )


def _one_checkpoint(images: Sequence[GeneratedImage]) -> None:
    found: dict[str, set[int]] = {}
    for image in images:
        found.setdefault(image.method, set()).add(image.iterations)
    for method, iterations in found.items():
        if len(iterations) > 1:
            raise UserError(
                f"there are images of {method} at several checkpoints",
                expected=f"one, named by +checkpoints.{method}=N",
                got=", ".join(str(n) for n in sorted(iterations)),
                key="checkpoints",
            )


def _drawn(image: GeneratedImage) -> tuple[Any, ...]:
    """What the pixels depend on, besides prompt and seed."""
    return tuple(getattr(image, name) for name in _SAMPLING)
