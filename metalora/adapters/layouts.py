"""How a LoRA's matrices are named in files: diffusers' layout and Kohya's, which ComfyUI reads.

For FLUX, Kohya names the modules of the original code, where query, key and value (and a single block's MLP input)
are one Linear. Fusing is exact: the Downs are stacked, the Ups go on a block diagonal, and the rank grows with the
number of parts. Reading undoes it part by part, for other people's files too. A U-Net's layers keep diffusers' names,
with underscores.

Shape legend: I in, O out, S rank.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalora.core.contracts import LoraFile
from metalora.core.errors import UserError

LAYOUTS = ("diffusers", "kohya")
COMPONENTS = ("transformer", "unet")
_UNET = re.compile(
    r"(?P<block>(?:down|up)_blocks_\d+|mid_block)_attentions_(?P<at>\d+)_transformer_blocks_(?P<in>\d+)_(?P<attn>attn[12])_"
    r"to_(?P<part>q|k|v|out_0)"
)
_KOHYA = "lora_unet_"
_PEFT = "lora_adapter_metadata"
"""Header entry in which diffusers keeps PEFT's configuration."""

DOUBLE_BLOCK = {
    "img_mod_lin": ("norm1.linear",),
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn_proj": ("attn.to_out.0",),
    "img_mlp_0": ("ff.net.0.proj",),
    "img_mlp_2": ("ff.net.2",),
    "txt_mod_lin": ("norm1_context.linear",),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn_proj": ("attn.to_add_out",),
    "txt_mlp_0": ("ff_context.net.0.proj",),
    "txt_mlp_2": ("ff_context.net.2",),
}
SINGLE_BLOCK = {
    "modulation_lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
}
"""A module of the original FLUX code -> the Linears that diffusers makes of it, in the order of its outputs."""
_BLOCKS = {
    "double_blocks": ("transformer_blocks", DOUBLE_BLOCK),
    "single_blocks": ("single_transformer_blocks", SINGLE_BLOCK),
}


def to_diffusers(lora: LoraFile) -> dict[str, Tensor]:
    """`COMPONENT.LAYER.lora_A.weight` [S, I] and `.lora_B.weight` [O, S]: alpha is the rank by default there."""
    tensors = {}
    for name in lora.down:
        tensors[f"{lora.component}.{name}.lora_A.weight"] = lora.down[name].contiguous()
        tensors[f"{lora.component}.{name}.lora_B.weight"] = lora.up[name].contiguous()
    return tensors


def to_kohya(lora: LoraFile) -> dict[str, Tensor]:
    """`lora_unet_MODULE.lora_down.weight`, `.lora_up.weight` and `.alpha` (= the module's rank).

    Raises:
        UserError: a layer that FLUX does not have, or only some parts of a fused module.
    """
    tensors: dict[str, Tensor] = {}
    for module in _modules_of(lora):
        parts = [name for name in module.layers if name in lora.down]
        if len(parts) < len(module.layers):
            lacking = [name for name in module.layers if name not in lora.down]
            raise UserError(
                f"{module.name} cannot be fused",
                expected=f"all of {', '.join(module.layers)}",
                got=f"no {', '.join(lacking)}",
                key="format",
            )
        rank = max(len(lora.down[name]) for name in parts)  # of equal parts, so that readers can tell them apart
        down_SI = torch.cat([_padded(lora.down[name], rank, dim=0) for name in parts])
        up_OS = torch.block_diag(*(_padded(lora.up[name], rank, dim=1) for name in parts))
        tensors[f"{module.name}.lora_down.weight"] = down_SI.contiguous()
        tensors[f"{module.name}.lora_up.weight"] = up_OS.contiguous()
        tensors[f"{module.name}.alpha"] = torch.tensor(float(len(down_SI)), dtype=torch.float32)
    return tensors


def from_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, where: str) -> LoraFile:
    """A LoRA from a file of either layout, with its scale (alpha / rank) folded into Up.

    Raises:
        UserError: neither layout, half a pair of matrices, or shapes that do not fit each other.
    """
    kohya = any(key.startswith(_KOHYA) for key in tensors)
    told = {name: value for name, value in metadata.items() if name != _PEFT}  # its scale is folded in: no longer true
    pairs = _pairs(tensors, ("lora_down", "lora_up") if kohya else ("lora_A", "lora_B"), where=where)
    if kohya:
        down, up = _from_kohya(pairs, where=where)
        flux = all(name.startswith(tuple(own for own, _ in _BLOCKS.values())) for name in down)
        return LoraFile(down=down, up=up, metadata=told, component="transformer" if flux else "unet")
    component = next(iter(pairs)).partition(".")[0]
    if component not in COMPONENTS:
        raise _strange(where, next(iter(pairs)))
    down, up = _from_diffusers(pairs, metadata, prefix=f"{component}.", where=where)
    return LoraFile(down=down, up=up, metadata=told, component=component)


@dataclass(frozen=True)
class _Module:
    name: str
    """With Kohya's prefix."""
    layers: tuple[str, ...]
    """diffusers' names, in the order of the module's outputs."""


@dataclass(frozen=True)
class _Pair:
    down_SI: Tensor
    up_OS: Tensor
    alpha: float | None


def _modules_of(lora: LoraFile) -> list[_Module]:
    """The modules that Kohya's names know of a LoRA's layers, in the order of the layers."""
    # Stable Diffusion 3's blocks are named like FLUX's double blocks, but other programs call them something else.
    is_flux = any(name.startswith("single_transformer_blocks.") for name in lora.down)
    module_of = {"transformer": _flux_module, "unet": _unet_module}[lora.component]
    known = is_flux or lora.component == "unet"
    found = {name: module_of(name) if known else None for name in lora.down}
    if unknown := [name for name, module in found.items() if module is None]:
        raise UserError(
            "the Kohya layout has no names for this",
            expected="layers of a U-Net's attention or of FLUX's blocks, single ones among them (others may be Stable "
            "Diffusion 3's)",
            got=f"{len(unknown)} others: {', '.join(unknown[:3])}",
            key="format",
        )
    return list(dict.fromkeys(module for module in found.values() if module is not None))


def _unet_module(layer: str) -> _Module | None:
    name = layer.replace(".", "_")
    return _Module(f"{_KOHYA}{name}", (layer,)) if _unet_layer(name) == layer else None


def _unet_layer(name: str) -> str | None:
    """Diffusers' name of a U-Net's attention layer from the one with underscores."""
    found = _UNET.fullmatch(name)
    if found is None:
        return None
    block = re.sub(r"_(\d+)$", r".\1", found["block"])
    place = f"{block}.attentions.{found['at']}.transformer_blocks.{found['in']}"
    return f"{place}.{found['attn']}.to_{found['part'].replace('_', '.')}"


def _flux_module(layer: str) -> _Module | None:
    for block, (own, table) in _BLOCKS.items():
        stack, _, rest = layer.partition(".")
        number, _, part = rest.partition(".")
        for word, parts in table.items():
            if stack == own and part in parts:
                return _Module(f"{_KOHYA}{block}_{number}_{word}", tuple(f"{own}.{number}.{part}" for part in parts))
    return None


def _pairs(tensors: Mapping[str, Tensor], words: tuple[str, str], *, where: str) -> dict[str, _Pair]:
    """Down and Up by module name; every tensor of the file must belong to one."""
    names = dict.fromkeys(
        key.rsplit(f".{word}.weight", 1)[0] for word in words for key in tensors if f".{word}." in key
    )
    pairs, used = {}, set()
    for name in names:
        keys = [f"{name}.{word}.weight" for word in words]
        if not all(key in tensors and tensors[key].ndim == 2 for key in keys):
            raise _strange(where, f"half a pair of matrices: {name}")
        down_SI, up_OS = (tensors[key] for key in keys)
        if down_SI.shape[0] != up_OS.shape[1]:
            raise _strange(where, f"{name} of rank {down_SI.shape[0]} and {up_OS.shape[1]}")
        alpha = tensors.get(f"{name}.alpha")
        pairs[name] = _Pair(down_SI, up_OS, None if alpha is None else float(alpha))
        used.update((*keys, f"{name}.alpha"))
    strange = sorted(set(tensors) - used)
    if strange or not pairs:
        raise _strange(where, ", ".join(strange[:3]) or "no tensor")
    return pairs


def _from_diffusers(
    pairs: Mapping[str, _Pair], metadata: Mapping[str, str], *, prefix: str, where: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    down, up = {}, {}
    scale_of = _peft_scales(metadata, prefix=prefix)
    for name, pair in pairs.items():
        if not name.startswith(prefix):
            raise _strange(where, name)
        layer, rank = name.removeprefix(prefix), len(pair.down_SI)
        scale = scale_of(layer, rank) if pair.alpha is None else pair.alpha / rank
        down[layer], up[layer] = pair.down_SI, _scaled(pair.up_OS, scale)
    return down, up


def _peft_scales(metadata: Mapping[str, str], *, prefix: str) -> Callable[[str, int], float]:
    """The scale of a layer under PEFT's configuration, where the header holds one; else 1."""
    try:
        config: dict[str, Any] = json.loads(metadata.get(_PEFT, "{}"))
    except ValueError:
        config = {}
    own = {key.removeprefix(prefix): value for key, value in config.items() if key.startswith(prefix)}

    def scale(layer: str, rank: int) -> float:
        alphas = own.get("alpha_pattern") or {}
        special = (value for key, value in alphas.items() if re.fullmatch(rf"(.*\.)?({key})", layer))  # as PEFT does
        alpha = next(special, own.get("lora_alpha"))
        if alpha is None:
            return 1.0
        return float(alpha) / (rank**0.5 if own.get("use_rslora") else rank)

    return scale


def _from_kohya(pairs: Mapping[str, _Pair], *, where: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    down, up = {}, {}
    for name, pair in pairs.items():
        layers = _layers_of(name, where=where)
        up_OS = _scaled(pair.up_OS, 1.0 if pair.alpha is None else pair.alpha / len(pair.down_SI))
        if len(layers) > 1 and (len(up_OS) % 3 if len(layers) == 3 else len(up_OS) <= 3 * pair.down_SI.shape[1]):
            raise _strange(where, f"{name} with {len(up_OS)} outputs")
        for layer, down_SI, part_OS in zip(layers, *_parted(pair.down_SI, up_OS, parts=len(layers)), strict=True):
            down[layer], up[layer] = down_SI, part_OS
    return down, up


def _layers_of(name: str, *, where: str) -> tuple[str, ...]:
    for block, (own, table) in _BLOCKS.items():
        start = f"{_KOHYA}{block}_"
        if name.startswith(start):
            number, _, fused = name.removeprefix(start).partition("_")
            if number.isdigit() and fused in table:
                return tuple(f"{own}.{number}.{part}" for part in table[fused])
    layer = _unet_layer(name.removeprefix(_KOHYA))
    if layer is None:
        raise _strange(where, name)
    return (layer,)


def _parted(down_SI: Tensor, up_OS: Tensor, *, parts: int) -> tuple[list[Tensor], list[Tensor]]:
    """A fused module's matrices part by part; on a block diagonal every part gets its own ranks back, else all."""
    width = down_SI.shape[1]
    # Query, key and value are as wide as the input each; what is left is the MLP.
    sizes = [len(up_OS) // parts] * parts if parts < 4 else [width] * 3 + [len(up_OS) - 3 * width]
    ups = list(up_OS.split(sizes))
    rank, rest = divmod(len(down_SI), parts)
    blocks = [part.split(rank, dim=1) for part in ups] if rank and not rest else []
    if parts > 1 and blocks and not any(b.any() for i, row in enumerate(blocks) for j, b in enumerate(row) if i != j):
        return list(down_SI.split(rank)), [row[place].contiguous() for place, row in enumerate(blocks)]
    return [down_SI.clone() for _ in range(parts)], [part.clone() for part in ups]


def _padded(tensor: Tensor, size: int, *, dim: int) -> Tensor:
    """Zeros behind a matrix until it has `size` rows (dim 0) or columns (dim 1)."""
    missing = size - tensor.shape[dim]
    return torch.nn.functional.pad(tensor, (0, 0, 0, missing) if dim == 0 else (0, missing)) if missing else tensor


def _scaled(up_OS: Tensor, scale: float) -> Tensor:
    return up_OS if scale == 1.0 else up_OS.float() * scale


def _strange(where: str, got: str) -> UserError:
    return UserError(
        f"{where} is no LoRA that can be read",
        expected="transformer. or unet.LAYER.lora_A/lora_B (diffusers), or lora_unet_MODULE.lora_down/lora_up (Kohya)",
        got=got,
        key="lora",
    )
