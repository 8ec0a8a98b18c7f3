"""Print how far a LoRA's Up has moved in Stage 2 beside what pure gradient noise would have moved it.

    python -m experiments.learning_rate.random_walk [outputs/learning_rate]

AdamW gives every weight a step of about the learning rate. Where the gradient is noise, n such steps add up to
rate * sqrt(n); where it points one way, to rate * n. A ratio near 1 is what noise alone would leave; weight decay and
rare large gradients can bring it below 1.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from metalora.adapters.artifacts import load_lora
from metalora.core.errors import UserError
from metalora.training.cohorts import lora_path


def root_mean_square_of_up(path: Path) -> float:
    """Over all layers of a LoRA file: sqrt of the mean of Up squared."""
    up = np.concatenate([tensor.numpy().ravel() for tensor in load_lora(path).up.values()])
    return float(np.sqrt(np.mean(up**2)))


def main(folder: Path) -> None:
    """One line per method, rate and checkpoint: a mean over people."""
    manifests = sorted((folder / "personalize").glob("*/manifest.json"))
    if not manifests:
        raise UserError("no LoRAs to look at", expected="personalize/*/manifest.json", got=str(folder))
    found: dict[tuple[str, float, int], list[float]] = defaultdict(list)
    for path in manifests:
        told = json.loads(path.read_text())
        method, rate = told["config"]["method"]["name"], float(told["config"]["learning_rate"])
        for count in told["iterations"]:
            for identity in told["references"]:
                found[method, rate, count].append(root_mean_square_of_up(lora_path(path.parent, identity, count)))
    print(
        f"{'method':<10} {'rate':>8} {'iterations':>10} {'people':>7} {'Up, rms':>9} {'rate*sqrt(n)':>13} {'ratio':>6}"
    )
    for (method, rate, count), values in sorted(found.items()):
        moved, noise = float(np.mean(values)), rate * count**0.5
        print(
            f"{method:<10} {rate:>8g} {count:>10} {len(values):>7} {moved:>9.4f} {noise:>13.4f} {moved / noise:>6.2f}"
        )


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/learning_rate"))
    except UserError as error:
        raise SystemExit(f"random_walk: {error}") from None
