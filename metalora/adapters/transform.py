"""A LoRA made into another one: other precision, strength or rank, or gone into the base model's own weights."""

import contextlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from metalora.adapters.artifacts import opened
from metalora.core.atomic import atomic_folder
from metalora.core.contracts import LoraFile
from metalora.core.errors import UserError
from metalora.core.lora import LayerShape, truncate


def cast(lora: LoraFile, dtype: torch.dtype) -> LoraFile:
    """The same LoRA in another precision."""
    return replace(
        lora,
        down={name: tensor.to(dtype) for name, tensor in lora.down.items()},
        up={name: tensor.to(dtype) for name, tensor in lora.up.items()},
    )


def scaled(lora: LoraFile, strength: float) -> LoraFile:
    """The LoRA whose full effect is this one's at `strength`; computed in float32."""
    return lora if strength == 1 else replace(lora, up={name: up.float() * strength for name, up in lora.up.items()})


@dataclass(frozen=True)
class Resized:
    """A LoRA of another rank and what it keeps of the one it came from."""

    lora: LoraFile
    kept: float
    """Share of the squared norm of all layers' updates together."""


def resized(lora: LoraFile, rank: int) -> Resized:
    """The nearest LoRA of one rank in every layer (`metalora.core.lora.truncate`).

    Raises:
        UserError: a rank below 1.
    """
    if rank < 1:
        raise UserError("no such rank", expected="1 or more", got=str(rank), key="resize")
    down, up = {}, {}
    whole = left = 0.0
    for name in lora.down:
        made = truncate(lora.down[name].float(), lora.up[name].float(), rank=rank)
        down[name], up[name] = made.down_SI, made.up_OS
        # |Up Down|^2 = sum over (Up^T Up) * (Down Down^T): the product itself may not fit into memory.
        old_up, old_down = lora.up[name].double(), lora.down[name].double()
        energy = float(((old_up.mT @ old_up) * (old_down @ old_down.mT)).sum())
        whole, left = whole + energy, left + energy * made.kept
    return Resized(replace(lora, down=down, up=up), left / whole if whole else 1.0)


def filled(lora: LoraFile, shapes: Mapping[str, LayerShape]) -> LoraFile:
    """The same LoRA over all of a model's layers and of one rank: zeros where it has nothing, which changes nothing.

    Layers that the model lacks are kept, for whoever loads it to refuse.
    """
    rank = ranks(lora)[-1]
    down = {name: tensor.new_zeros(rank, tensor.shape[1]) for name, tensor in lora.down.items()}
    up = {name: tensor.new_zeros(tensor.shape[0], rank) for name, tensor in lora.up.items()}
    for name in lora.down:
        down[name][: len(lora.down[name])] = lora.down[name]
        up[name][:, : lora.up[name].shape[1]] = lora.up[name]
    for name in shapes.keys() - lora.down.keys():
        down[name] = torch.zeros(rank, shapes[name].in_features)
        up[name] = torch.zeros(shapes[name].out_features, rank)
    return replace(lora, down=down, up=up)


def ranks(lora: LoraFile) -> list[int]:
    """The distinct ranks of a LoRA's layers, ascending."""
    return sorted({len(down_SI) for down_SI in lora.down.values()})


def merge_into(base: Path, lora: LoraFile, out: Path) -> int:
    """Write a copy of a pipeline directory whose denoiser has the LoRA in its weights: W0 + Up Down.

    Shard by shard, so that no more than one file of the base is in memory; sums are taken in float32 and kept in the
    base's precision. The other weights are linked to the base's own files where the file system can, the rest is
    copied. `out` appears when it is whole.

    Returns:
        the number of layers that were changed.

    Raises:
        UserError: `out` is there already; layers that the base lacks or has in other widths; a quantized base.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("there is something already", expected="a new folder", got=str(out), key="out")
    merged: set[str] = set()
    with atomic_folder(out) as partial:
        for source in sorted(path for path in base.rglob("*") if path.is_file()):
            target = partial / source.relative_to(base)
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.parent == base / lora.component and source.suffix == ".safetensors":
                merged |= _merge_file(source, lora, target)
            else:
                _link(source, target)
        if lacking := sorted(set(lora.down) - merged):
            raise UserError(
                "the LoRA does not fit the base model",
                expected=f"its {len(lora.down)} layers in {base / lora.component}",
                got=f"{len(lacking)} missing: {', '.join(lacking[:3])}",
                key="lora, backbone.path",
            )
    return len(merged)


def _merge_file(source: Path, lora: LoraFile, target: Path) -> set[str]:
    merged = set()
    tensors: dict[str, Tensor] = {}
    with opened(source, key="backbone.path") as file:
        metadata: dict[str, str] | None = file.metadata()
        for key in file.keys():  # noqa: SIM118
            weight = file.get_tensor(key)
            layer = key.removesuffix(".weight")
            if key.endswith(".weight") and layer in lora.down:
                weight = _merged(weight, lora, layer)
                merged.add(layer)
            tensors[key] = weight
    save_file(tensors, target, metadata=metadata)
    return merged


def _merged(weight_OI: Tensor, lora: LoraFile, layer: str) -> Tensor:
    down_SI, up_OS = lora.down[layer].float(), lora.up[layer].float()
    shape = (up_OS.shape[0], down_SI.shape[1])
    if tuple(weight_OI.shape) != shape or not weight_OI.dtype.is_floating_point or weight_OI.dtype.itemsize < 2:
        raise UserError(
            f"the LoRA does not fit layer {layer} of the base model",
            expected=f"{shape[1]} -> {shape[0]} in 16 or 32 bits",
            got=f"{list(weight_OI.shape)} in {str(weight_OI.dtype).removeprefix('torch.')}",
            key="lora, backbone.path",
        )
    return torch.addmm(weight_OI.float(), up_OS, down_SI).to(weight_OI.dtype)


def _link(source: Path, target: Path) -> None:
    """Only weights are shared with the base: nobody edits them in place, as they do configurations."""
    linked = False
    if source.suffix == ".safetensors":
        with contextlib.suppress(OSError):
            os.link(source.resolve(), target)
            linked = True
    if not linked:
        shutil.copyfile(source, target)
