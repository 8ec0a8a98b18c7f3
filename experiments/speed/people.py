"""What Stage 2 costs against the number of people and of checkpoints, on the mini world, files and states included.

    python -m experiments.speed.people [iterations=2] [cohort=16]

`run_personalization` itself with cached made-up latents of 64 x 64 pixels, rank 1, cohorts of 16. Sizes take turns, the
small ones several times. On a machine that others use, seconds of the process's own (`cpu`) say more than the clock's
(`wall`), so the straight lines are fitted to those. Writes results/people-DATE.json.
"""

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.speed.measuring import command, settings_of, write
from metalora.adapters.artifacts import Prior
from metalora.backbones.flux import load_flux
from metalora.configuration import PACKAGE
from metalora.core.contracts import Backbone, TextEmbedding, TrainingImage, TrainingPerson
from metalora.training.personalization import run_personalization

LATENT = (8, 16, 16)
PEOPLE = {16: 3, 64: 2, 256: 1, 1024: 1}
"""Number of people -> how often it is measured."""
CHECKPOINTS = {1: 3, 2: 2, 5: 2, 10: 3}
"""Number of checkpoints -> how often; 16 people, ten iterations."""
CAPTION = "a photo of a woman"
DEFAULTS = {"iterations": 2, "cohort": 16}


def people(count: int) -> list[TrainingPerson]:
    """People with two made-up images each."""
    draw = torch.Generator().manual_seed(0)
    return [
        TrainingPerson(
            f"p{k}",
            CAPTION,
            tuple(TrainingImage(torch.randn(2, *LATENT, generator=draw), (64, 64), f"{n}") for n in range(2)),
        )
        for k in range(count)
    ]


def prior(backbone: Backbone, *, meta_rank: int = 32) -> Prior:
    """A random Meta-Down: what it holds takes no time."""
    draw = torch.Generator().manual_seed(1)
    shapes = backbone.layer_shapes
    meta_down = {n: torch.randn(meta_rank, s.in_features, generator=draw) / 32 for n, s in shapes.items()}
    return Prior(meta_down, {"meta_rank": str(meta_rank), "backbone_fingerprint": backbone.fingerprint})


def seconds(
    backbone: Backbone, who: Sequence[TrainingPerson], texts: Mapping[str, TextEmbedding], **settings: Any
) -> dict[str, float]:
    """One whole run into an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        run_personalization(
            backbone,
            who,
            method="meta_lora",
            rank=1,
            meta_rank=None,
            learning_rate=1e-3,
            seed=0,
            texts=texts,
            out=Path(folder),
            **settings,
        )
        return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def line(medians: Mapping[int, float]) -> dict[str, Any]:
    """seconds = fixed + slope x, by least squares of the relative error, and what is left over."""
    x, y = np.array(list(medians)), np.array(list(medians.values()))
    design = np.stack([np.ones_like(y), x], axis=1)
    fixed, slope = np.linalg.lstsq(design / y[:, None], np.ones_like(y), rcond=None)[0]
    residuals = (fixed + slope * x) / y - 1
    return {
        "fixed_seconds": round(float(fixed), 4),
        "seconds_per_unit": round(float(slope), 5),
        "relative_residuals": {str(size): round(float(value), 4) for size, value in zip(x, residuals, strict=True)},
    }


def measured(runs: Mapping[int, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians by size and the line through them."""
    medians = {
        clock: {size: statistics.median(run[clock] for run in found) for size, found in runs.items()}
        for clock in ("cpu", "wall")
    }
    return {
        "runs": {
            str(size): [{k: round(v, 3) for k, v in run.items()} for run in found] for size, found in runs.items()
        },
        "median_cpu_seconds": {str(size): round(value, 3) for size, value in medians["cpu"].items()},
        "median_wall_seconds": {str(size): round(value, 3) for size, value in medians["wall"].items()},
        "line_cpu": line(medians["cpu"]),
    }


def in_turns(counts: Mapping[int, int]) -> list[int]:
    """Sizes in the order they are measured: 16 64 256 1024 16 64 256 16 ..."""
    return [size for turn in range(max(counts.values())) for size, times in counts.items() if turn < times]


def main(arguments: list[str]) -> None:
    """Time, fit, write."""
    values = settings_of(arguments, DEFAULTS)
    torch.set_num_threads(1)
    backbone = load_flux(PACKAGE / "miniworld/weights/flux", name="mini", max_text_tokens=24)
    texts, everybody = {CAPTION: backbone.encode_text([CAPTION])}, people(max(PEOPLE))
    shared = {"cohort_size": values["cohort"], "prior": prior(backbone), "checkpoint_seconds": 1e9}
    seconds(backbone, everybody[:16], texts, iterations=[2], **shared)  # warms up
    by_people: dict[int, list[dict[str, float]]] = {size: [] for size in PEOPLE}
    for size in in_turns(PEOPLE):
        by_people[size].append(seconds(backbone, everybody[:size], texts, iterations=[values["iterations"]], **shared))
        print(size, "people", by_people[size][-1], flush=True)
    by_checkpoints: dict[int, list[dict[str, float]]] = {count: [] for count in CHECKPOINTS}
    for count in in_turns(CHECKPOINTS):
        marks = [10 * (number + 1) // count for number in range(count)]
        by_checkpoints[count].append(seconds(backbone, everybody[:16], texts, iterations=marks, **shared))
        print(count, "checkpoints", by_checkpoints[count][-1], flush=True)
    found = measured(by_people)
    per = {size: value / int(size) / values["iterations"] for size, value in found["median_cpu_seconds"].items()}
    found["cpu_milliseconds_per_person_and_iteration"] = {size: round(1e3 * value, 3) for size, value in per.items()}
    write(
        "people",
        {"settings": values, "people": found, "checkpoints_of_16_people_10_iterations": measured(by_checkpoints)},
    )


if __name__ == "__main__":
    command("people", main)
