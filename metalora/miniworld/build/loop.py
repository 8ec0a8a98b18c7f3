"""One training loop for all tiny models: seeded by step, checkpointed, resumed by the same command."""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from metalora.core.atomic import atomic_path


@dataclass(frozen=True)
class Plan:
    """How long a training runs: steps, warm-up and decay (shares of the steps), seconds between checkpoints."""

    steps: int
    warmup: float = 0.02
    decay: float = 0.3
    checkpoint_seconds: float = 90.0

    def rate(self, step: int) -> float:
        """Learning-rate factor in (0, 1]: linear warm-up, constant, then linear decay to zero."""
        rising = (step + 1) / max(1.0, self.warmup * self.steps)
        falling = (self.steps - step) / max(1.0, self.decay * self.steps)
        return min(1.0, rising, falling)


def fast_dtype() -> torch.dtype:
    """What forward and backward run in: bf16 on CPUs with instructions for it, else fp32, ten times faster there."""
    known = torch.backends.cpu.get_cpu_capability()
    return torch.bfloat16 if known == "AVX512" and torch.cpu._is_avx512_bf16_supported() else torch.float32


def fast_autocast() -> torch.autocast:
    """Autocast to `fast_dtype`; nothing where that is fp32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=fast_dtype() == torch.bfloat16)


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """The optimizer's state as named tensors, without pickle."""
    state = optimizer.state_dict()["state"]
    return {
        f"{prefix}{index}.{name}": value.detach().clone()
        for index, entry in state.items()
        for name, value in entry.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """The inverse of `optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(prefix):
            index, entry = name.removeprefix(prefix).split(".", 1)
            state.setdefault(int(index), {})[entry] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def module_tensors(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """A module's state under a prefix."""
    return {prefix + name: value.detach().clone().contiguous() for name, value in module.state_dict().items()}


def restore_module(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """The inverse of `module_tensors`."""
    found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    module.load_state_dict(found)


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], *, notes: Mapping[str, Any]) -> None:
    """Write tensors and small notes (numbers, strings) as one safetensors file, atomically."""
    with atomic_path(path) as temporary:
        save_file(
            {name: value.contiguous() for name, value in tensors.items()},
            temporary,
            metadata={"notes": json.dumps(dict(notes))},
        )


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_checkpoint` wrote."""
    with safe_open(path, framework="pt") as file:
        notes = json.loads((file.metadata() or {})["notes"])
        return {name: file.get_tensor(name) for name in file.keys()}, notes  # noqa: SIM118


class Ema:
    """Exponential average of parameters, with a start that forgets quickly."""

    def __init__(self, parameters: list[Tensor], *, decay: float) -> None:
        self.decay = decay
        self.values = [parameter.detach().clone() for parameter in parameters]

    def update(self, parameters: list[Tensor], *, step: int) -> None:
        """Move the average towards the parameters after step `step`."""
        decay = min(self.decay, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(self.values, [parameter.detach() for parameter in parameters], 1 - decay)


def run_steps(
    *,
    name: str,
    plan: Plan,
    start: int,
    stop: int | None = None,
    one_step: Callable[[int], Mapping[str, float]],
    save: Callable[[int, float], None],
    seconds_before: float,
    log: Path,
    batch: int,
    quiet: bool = False,
) -> float:
    """Run `one_step(step)` from `start` to the plan's end (or `stop`); save now and then and at the end.

    Args:
        one_step: does step number `step` and returns values to log.
        save: called with (steps done, seconds of training so far).
        log: JSON lines with averaged values, one line about every 10 seconds.

    Returns:
        Seconds of training, those before a resume included.
    """
    stop = plan.steps if stop is None else stop
    began = logged = saved = time.monotonic()
    sums: dict[str, float] = {}
    count = 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), disable=quiet) as progress, log.open("a") as lines:
        task = progress.add_task(name, total=plan.steps, completed=start, note="")
        for step in range(start, stop):
            for key, value in one_step(step).items():
                assert math.isfinite(value), f"{name}: {key} is {value} at step {step}"
                sums[key] = sums.get(key, 0.0) + value
            count += 1
            now = time.monotonic()
            if now - logged > 10 or step + 1 == stop:
                means = {key: round(value / count, 5) for key, value in sums.items()}
                speed = count * batch / max(now - logged, 1e-9)
                lines.write(json.dumps({"step": step + 1, "samples_per_second": round(speed, 1), **means}) + "\n")
                lines.flush()
                note = " ".join(f"{key} {value:.4g}" for key, value in means.items())
                progress.update(task, note=f"{note} {speed:.0f}/s")
                sums, count, logged = {}, 0, now
            progress.update(task, completed=step + 1)
            if now - saved > plan.checkpoint_seconds:
                save(step + 1, seconds_before + now - began)
                saved = now
    seconds = seconds_before + time.monotonic() - began
    save(stop, seconds)
    return seconds
