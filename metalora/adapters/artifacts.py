"""What adapters are on disk: the prior (Meta-Down alone) and the plain LoRA that users get. Safetensors only."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from metalora.adapters.bank import AdapterBank
from metalora.adapters.layouts import from_tensors, to_diffusers, to_kohya
from metalora.core.atomic import atomic_path
from metalora.core.contracts import LoraFile
from metalora.core.errors import UserError

PRIOR_FORMAT = "metalora-prior-1"
LORA_FORMAT = "metalora-lora-1"
_META_DOWN = ".meta_down.weight"


@dataclass(frozen=True)
class Prior:
    """A meta-trained Meta-Down [R, I] per layer and where it comes from."""

    meta_down: dict[str, Tensor]
    metadata: dict[str, str]
    path: Path | None = None

    @property
    def meta_rank(self) -> int:
        """r1."""
        return int(self.metadata["meta_rank"])


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_prior(path: Path, *, key: str = "prior") -> None:
    """Raise UserError when there is no prior at `path`; its content is not looked at."""
    if not path.is_file():
        raise UserError(
            f"there is no prior {path}",
            expected="a prior.safetensors made by `metalora meta-train`",
            got="a folder" if path.is_dir() else "no such file",
            key=key,
        )


def save_prior(
    path: Path,
    bank: AdapterBank,
    *,
    backbone: str,
    backbone_fingerprint: str,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the bank's Meta-Down, atomically.

    Args:
        metadata: what else to keep, e.g. class_noun and iterations; numbers as strings.
    """
    tensors = {name + _META_DOWN: bank.meta_down_of(name).detach().cpu().contiguous() for name in bank.layers}
    header = {
        **(metadata or {}),
        "format": PRIOR_FORMAT,
        "backbone": backbone,
        "backbone_fingerprint": backbone_fingerprint,
        "meta_rank": str(bank.meta_rank),
    }
    write_tensors(Path(path), tensors, metadata=header)


def load_prior(path: Path) -> Prior:
    """Read a prior.

    Raises:
        UserError: missing, no whole safetensors file, or not a prior.
    """
    tensors, metadata = read_tensors(Path(path), what="prior")
    told = {"format", "backbone", "backbone_fingerprint", "meta_rank"} <= set(metadata)
    if not told or metadata["format"] != PRIOR_FORMAT or not all(name.endswith(_META_DOWN) for name in tensors):
        raise UserError(
            f"{path} is not a Meta-LoRA prior",
            expected=f"a file of format {PRIOR_FORMAT} that says which backbone and r1 it is of",
            got=metadata.get("format", "no format"),
            key="prior",
        )
    return Prior({name.removesuffix(_META_DOWN): tensor for name, tensor in tensors.items()}, metadata, Path(path))


def check_prior(prior: Prior, *, backbone_fingerprint: str, meta_rank: int | None, layers: Sequence[str]) -> None:
    """Refuse a prior that was made for something else.

    Args:
        meta_rank: the r1 that is asked for; None takes the prior's.

    Raises:
        UserError: another backbone, another r1, other layers.
    """
    what = f"the prior {prior.path or ''} does not fit"
    if prior.metadata["backbone_fingerprint"] != backbone_fingerprint:
        raise UserError(
            f"{what}: it was made with another backbone",
            expected=f"fingerprint {backbone_fingerprint[:12]}",
            got=f"{prior.metadata['backbone_fingerprint'][:12]} ({prior.metadata['backbone']})",
            key="prior",
        )
    if meta_rank is not None and prior.meta_rank != meta_rank:
        raise UserError(f"{what}: another r1", expected=f"r1 = {meta_rank}", got=str(prior.meta_rank), key="meta_rank")
    differing = sorted(set(layers) ^ set(prior.meta_down))
    if differing:
        raise UserError(
            f"{what}: other layers",
            expected=f"{len(layers)} layers",
            got=f"{len(prior.meta_down)}, {len(differing)} differ: {', '.join(differing[:3])}",
            key="prior",
        )


def save_lora(path: Path, lora: LoraFile, *, layout: str = "diffusers") -> None:
    """Write a plain LoRA, atomically.

    Args:
        layout: diffusers (what `load_lora_weights` reads, and this project) or kohya (ComfyUI; FLUX and U-Nets).

    Raises:
        UserError: layers that the layout has no names for.
    """
    tensors = {"diffusers": to_diffusers, "kohya": to_kohya}[layout](lora)
    write_tensors(Path(path), tensors, metadata={**lora.metadata, "format": LORA_FORMAT})


def load_lora(path: Path) -> LoraFile:
    """Read a plain LoRA in either layout, this project's or somebody else's; its scale is folded into Up.

    Raises:
        UserError: missing, no whole safetensors file, or another layout.
    """
    tensors, metadata = read_tensors(Path(path), what="LoRA")
    return replace(from_tensors(tensors, metadata, where=str(path)), path=Path(path))


def write_tensors(path: Path, tensors: dict[str, Tensor], *, metadata: dict[str, str]) -> None:
    """Atomic, and equal adapters are equal files bit for bit: safetensors keeps metadata in a hash map of random order,
    so the header is written again, sorted. A full disk is an OSError here (safetensors' own writer raises its own)."""
    content = save(tensors, metadata=metadata)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    sorted_header = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
    assert len(sorted_header) == length
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(content[:8] + sorted_header)
        file.write(memoryview(content)[8 + length :])


def read_tensors(path: Path, *, what: str, key: str | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Args:
        what: the file is of this kind, for error messages; in lower case it names the key by default.

    Raises:
        UserError: missing, or no whole safetensors file.
    """
    key = key or what.lower()
    if not path.is_file():
        raise UserError(f"the {what} file is missing", expected="a .safetensors file", got=str(path), key=key)
    with opened(path, what=f"the {what} {path}", key=key) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


@contextlib.contextmanager
def opened(path: Path, *, what: str | None = None, key: str) -> Iterator[Any]:
    """A safetensors file to read from; its tensors are read when they are asked for.

    Args:
        what: the file, for the error message; its path by default.

    Raises:
        UserError: no whole safetensors file.
    """
    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{what or path} cannot be read", expected="a whole safetensors file", got=str(error), key=key
        ) from error
    with file:
        yield file
