"""Which finished images a study can draw on: one per method, person, prompt and seed, from any number of folders."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from metalora.core.contracts import GeneratedImage
from metalora.core.errors import UserError
from metalora.core.manifest import FILE_NAME, inside, read_manifest
from metalora.evaluation.checked import Checked

BASE = "base"
ORDER = ("instantid_sdxl", "instantid_lightning", "photomaker_sdxl", "photomaker_lightning", "pulid")
ORDER += ("ip_adapter", "dreambooth", "lora", "lora_aug", "meta_lora")
"""Methods in the order of the paper's tables; others come first, by name."""
_SAMPLING = ("lora_sha256", "base_model", "steps", "guidance", "size", "strength", "start_sha256", "denoise")
_SAMPLING += ("weights_sha256", "reference_sha256")


@dataclass(frozen=True)
class Pool:
    """Images by (method, identity, prompt id, seed), prompts by (identity, prompt id), and how each method drew.

    `left_out` says of images that do not count which, how many and why, by method.
    """

    files: Mapping[tuple[str, str, str, int], Path]
    prompts: Mapping[tuple[str, str], str]
    facts: Mapping[str, Mapping[str, Any]]
    left_out: Mapping[str, Sequence[str]]

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
        there = [folder] if (folder / FILE_NAME).is_file() else sorted(p.parent for p in folder.glob(f"*/{FILE_NAME}"))
        if not there:
            raise UserError(f"no {FILE_NAME} in {folder} or directly below it", expected="generated images", key=key)
        found += [path for path in there if path not in found]
    return tuple(found)


def read_pool(folders: Sequence[Path], *, rank: int, checkpoints: Mapping[str, int], checked: Checked) -> Pool:
    """Read every manifest and keep one image per method, person, prompt and seed.

    Args:
        folders: as `find_folders` returns them.
        rank: of a method that has LoRAs, only this rank's images count.
        checkpoints: method to the iterations whose images count; where there are none of these, images that name no
            iterations (0) do. A method not named must have one checkpoint only.
        checked: the benchmark, which every image that counts is held against.

    Raises:
        UserError: an image that is not the benchmark's, two different ones for one place, several checkpoints, none.
    """
    records = [(folder, image) for folder in folders for image in read_manifest(folder) if image.method != BASE]
    wanted, left_out = _sift(records, rank=rank, checkpoints=checkpoints, checked=checked)
    _one_checkpoint([image for _, image in wanted])
    files: dict[tuple[str, str, str, int], tuple[Path, GeneratedImage]] = {}
    for folder, image in wanted:
        place = (image.method, image.identity, image.prompt_id, image.seed)
        path = inside(folder, image.file)
        known_path, known = files.setdefault(place, (path, image))
        if differs := [name for name in _SAMPLING if getattr(known, name) != getattr(image, name)]:
            raise UserError(
                f"two different images of {image.method} for {image.identity}, {image.prompt_id}, seed {image.seed}",
                expected="one",
                got=f"{known_path} and {path}, which differ in {', '.join(differs)}",
                key="images",
            )
    if not files:
        raise UserError(
            "no images to build a study from",
            expected=f"images of the benchmark's people and prompts, rank {rank}, at the checkpoints",
            got="; ".join(line for lines in left_out.values() for line in lines) or "none",
            key="images, rank, checkpoints",
        )
    facts: dict[str, dict[str, Any]] = {}
    for (method, *_), (_, image) in files.items():
        facts.setdefault(
            method, {k: getattr(image, k) for k in ("rank", "iterations", "base_model", "steps", "guidance")}
        )
    return Pool(
        {place: path for place, (path, _) in files.items()},
        {(image.identity, image.prompt_id): image.prompt for _, image in files.values()},
        facts,
        left_out,
    )


_Records = list[tuple[Path, GeneratedImage]]


def _sift(
    records: _Records, *, rank: int, checkpoints: Mapping[str, int], checked: Checked
) -> tuple[_Records, dict[str, list[str]]]:
    """The images that count, with class noun and prompt filled in, and what does not count, by method."""
    people, prompts = {s.identity for s in checked.subjects}, {prompt_id for prompt_id, _ in checked.texts}
    there = {(i.method, i.iterations) for _, i in records if i.rank in (0, rank)}
    wanted: _Records = []
    left: dict[tuple[str, str], Counter[str]] = {}
    for folder, image in records:
        chosen = checkpoints.get(image.method, image.iterations)
        at = chosen if (image.method, chosen) in there or (image.method, 0) not in there else 0
        if image.rank not in (0, rank):
            why, which = f"of other ranks than rank={rank}", image.rank
        elif image.iterations != at:
            why, which = f"at other iterations than checkpoints.{image.method}={chosen}", image.iterations
        elif image.identity not in people:
            why, which = "of people who are not in the benchmark", image.identity
        elif image.prompt_id not in prompts:
            why, which = "of prompts that are not in the benchmark", image.prompt_id
        else:
            wanted.append((folder, checked.fill(image)))
            continue
        left.setdefault((image.method, why), Counter())[str(which)] += 1
    told: dict[str, list[str]] = {}
    for (method, why), found in left.items():
        few = ", ".join(sorted(found, key=lambda word: (len(word), word))[:6]) + (", ..." if len(found) > 6 else "")
        told.setdefault(method, []).append(f"{found.total()} images of {method} {why}: {few}")
    return wanted, told


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
