"""A base whose target layers are kept in fewer bits, by diffusers' own quantizers; made once, kept on disk, read again.

Only the adapters' Linear layers are quantized: they are nearly all of a denoiser, and what stands around them
(embedders, output norms) is small and sensitive.
"""

import hashlib
import importlib.util
import json
import shutil
from collections import OrderedDict
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from metalora.backbones.directory import LOCAL, PipelineDirectory, readable
from metalora.core.atomic import atomic_folder, clear_partial, writing
from metalora.core.bits import is_quantized
from metalora.core.errors import UserError
from metalora.core.lease import Lease

LIBRARY = {"float8": "torchao", "int8": "torchao", "nf4": "bitsandbytes"}
"""Which library keeps weights so."""
_NF4_BLOCK = 64


def check_quantization(kind: str | None, *, device: torch.device) -> None:
    """Whether weights can be kept so here.

    Raises:
        UserError: no such kind; its library is missing; nf4 without a GPU.
    """
    if kind is None:
        return
    key = "memory.quantization"
    if kind not in LIBRARY:
        raise UserError("no such quantization", expected=f"{', '.join(LIBRARY)} or null", got=str(kind), key=key)
    if importlib.util.find_spec(LIBRARY[kind]) is None:
        raise UserError(
            f"{kind} weights need {LIBRARY[kind]}",
            expected=f"pip install {LIBRARY[kind]}, or another memory preset",
            got=f"no {LIBRARY[kind]}",
            key=key,
        )
    if kind == "nf4" and device.type != "cuda":
        raise UserError("nf4 weights need a GPU", expected="trainer=gpu, or float8 or int8", got=str(device), key=key)


def quantized_bytes(shape: tuple[int, int], *, kind: str | None, dtype: torch.dtype) -> int:
    """What a weight [O, I] takes: its numbers and, of quantized ones, a float32 scale per row (nf4: per 64 numbers)."""
    rows, numel = shape[0], shape[0] * shape[1]
    if kind is None:
        return numel * dtype.itemsize
    return numel // 2 + 4 * (-(-numel // _NF4_BLOCK)) if kind == "nf4" else numel + 4 * rows


def load_quantized(
    model: Any,
    directory: PipelineDirectory,
    *,
    kind: str,
    dtype: torch.dtype,
    device: torch.device,
    on_cpu: bool = False,
    targets: Sequence[str],
    others: Sequence[str],
    root: Path,
) -> Any:
    """The denoiser with quantized target layers, from its copy under `root`, which is made when it is not there.

    Args:
        model: the denoiser's class.
        on_cpu: read it on the CPU, as its weights will wait there (nf4 is read on the GPU all the same).
        targets, others: dotted names of the Linear layers to quantize and of those to leave alone.

    Raises:
        UserError: a base or a copy that cannot be read, a library that is missing.
    """
    check_quantization(kind, device=device)
    on_device = kind == "nf4" or (device.type == "cuda" and not on_cpu)
    placed: dict[str, Any] = {"device_map": {"": str(device)}} if on_device else {}
    options = {"dtype": dtype, **placed, **LOCAL}
    root.mkdir(parents=True, exist_ok=True)
    made_by = [LIBRARY[kind], version(LIBRARY[kind]), *sorted(targets)]
    digest = hashlib.sha256(json.dumps(made_by).encode()).hexdigest()[:8]
    name = f"{directory.component}-{directory.fingerprint[:16]}-{kind}-{str(dtype).removeprefix('torch.')}-{digest}"
    folder = root / name

    def make() -> None:
        with readable(directory.folder):
            config = _config(kind, dtype=dtype, targets=targets, others=others)
            made = model.from_pretrained(
                directory.folder, subfolder=directory.component, quantization_config=config, **options
            )
        clear_partial(folder)
        with writing(folder), atomic_folder(folder) as partial:
            made.save_pretrained(partial, safe_serialization=True)

    def read() -> Any:
        with readable(folder):
            return model.from_pretrained(folder, **options)

    with Lease(root / f".{name}.lease", what=name):
        if not folder.is_dir():
            make()
        try:
            denoiser = read()
        except UserError:  # the copy's fault, which is no loss
            shutil.rmtree(folder)
            make()
            denoiser = read()
    modules = dict(denoiser.named_modules())
    with readable(directory.folder):
        for name in others:
            if is_quantized(modules[name].weight):
                _restore(denoiser, name, directory, dtype=dtype)
    return denoiser


def _restore(denoiser: nn.Module, name: str, directory: PipelineDirectory, *, dtype: torch.dtype) -> None:
    """Give a layer that a library quantized unasked its own weight back."""
    files = sorted((directory.folder / directory.component).glob("*.safetensors"))
    found: dict[str, torch.Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            own = [key for key in tensors.keys() if key.rpartition(".")[0] == name]  # noqa: SIM118
            found |= {key.rpartition(".")[2]: tensors.get_tensor(key).to(dtype) for key in own}
    plain = nn.Linear(found["weight"].shape[1], found["weight"].shape[0], bias="bias" in found, device="meta")
    plain.load_state_dict(found, assign=True)
    parent, _, last = name.rpartition(".")
    setattr(denoiser.get_submodule(parent), last, plain)


def _config(kind: str, *, dtype: torch.dtype, targets: Sequence[str], others: Sequence[str]) -> Any:
    if kind == "nf4":
        from diffusers import BitsAndBytesConfig

        # The library compares the last part of a name too: what shares it with a target layer is restored afterwards.
        ends = {name.rpartition(".")[2] for name in targets}
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=[name for name in others if name.rpartition(".")[2] not in ends],
        )
    from diffusers import TorchAoConfig
    from torchao.quantization import Float8WeightOnlyConfig, FqnToConfig, Int8WeightOnlyConfig

    each: Any = Float8WeightOnlyConfig() if kind == "float8" else Int8WeightOnlyConfig(version=2)
    return TorchAoConfig(FqnToConfig(OrderedDict((name, each) for name in targets)))
