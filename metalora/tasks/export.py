"""`metalora export`: read a LoRA, check it, and write it in another precision in the layout that diffusers loads."""

from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import DictConfig

from metalora.adapters.artifacts import load_lora, save_lora
from metalora.core.errors import UserError
from metalora.tasks.setting import Setting

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def run(cfg: DictConfig) -> None:
    """The task behind the command line."""
    setting = Setting.of(cfg)
    if setting["dtype"] not in DTYPES:
        raise UserError("unknown precision", expected=", ".join(DTYPES), got=str(setting["dtype"]), key="dtype")
    source = Path(setting["lora"])
    target = (
        Path(setting["out"]) if setting["out"] else source.with_name(f"{source.stem}-{setting['dtype']}.safetensors")
    )
    if target.is_dir():
        raise UserError("cannot write a LoRA onto a folder", expected="a file name", got=str(target), key="out")
    lora, dtype = load_lora(source), DTYPES[setting["dtype"]]
    save_lora(
        target,
        replace(
            lora,
            down={name: tensor.to(dtype) for name, tensor in lora.down.items()},
            up={name: tensor.to(dtype) for name, tensor in lora.up.items()},
        ),
    )
    print(f"LoRA: {target} ({target.stat().st_size / 1024:.0f} KiB)")
