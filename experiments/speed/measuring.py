"""What the speed commands share: their words, alternating timings, and where these were taken."""

import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metalora.core.errors import UserError

RESULTS = Path(__file__).parent / "results"


def command(name: str, main: Callable[[list[str]], None]) -> None:
    """Run `main` with what was typed; what is wrong with it is one line."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        raise SystemExit(f"{name}: {error}") from None


def settings_of(arguments: Sequence[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults with KEY=VALUE words over them, each of its default's type.

    Raises:
        UserError: another key, or a value of another type.
    """
    settings = dict(defaults)
    for word in arguments:
        key, _, value = word.partition("=")
        if key not in defaults:
            raise UserError("unknown option", expected=" ".join(f"{k}={v}" for k, v in defaults.items()), got=word)
        kind = type(defaults[key])
        try:
            settings[key] = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (KeyError, ValueError):
            raise UserError("not a value of this option", expected=kind.__name__, got=value, key=key) from None
    return settings


def alternate(steps: Mapping[str, Callable[[], None]], *, repeats: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Seconds of every variant, one after the other and the order turned round every other time.

    A busy machine or a warming processor then meets all variants alike, and what counts is the ratio.
    """
    for step in steps.values():
        for _ in range(warm_up):
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats):
        for name in list(steps)[:: -1 if repeat % 2 else 1]:
            start = time.perf_counter()
            steps[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(seconds: Mapping[str, list[float]], *, against: str) -> dict[str, dict[str, float]]:
    """Median, quartiles and minimum of each variant, and its median as a multiple of `against`'s."""
    result = {}
    for name, values in seconds.items():
        low, median, high = np.percentile(values, [25, 50, 75])
        result[name] = {
            "median_seconds": round(float(median), 5),
            "quartiles_seconds": [round(float(low), 5), round(float(high), 5)],
            "minimum_seconds": round(min(values), 5),
            "ratio_of_medians": round(float(median / np.median(seconds[against])), 4),
            "median_of_ratios": round(float(np.median(np.array(values) / np.array(seconds[against]))), 4),
        }
    return result


def write(name: str, result: Mapping[str, Any]) -> Path:
    """Write a result with date, hardware and versions to `results/NAME-DATE.json`; print it as well."""
    date = datetime.now(UTC).date().isoformat()
    content = {
        "date": date,
        "hardware": _processor(),
        "threads": torch.get_num_threads(),
        "versions": {package: version(package) for package in ("torch", "diffusers", "peft")},
        **result,
    }
    path = RESULTS / f"{name}-{date}.json"
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(path.read_text())
    return path


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()
