"""Alternating timings and where they were taken."""

import json
import platform
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

RESULTS = Path(__file__).parent / "results"


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
    """Write a result with date, hardware and versions to `results/NAME.json`; print it as well."""
    content = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": _processor(),
        "threads": torch.get_num_threads(),
        "versions": {package: version(package) for package in ("torch", "diffusers", "peft")},
        **result,
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(path.read_text())
    return path


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()
