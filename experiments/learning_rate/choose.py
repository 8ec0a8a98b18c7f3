"""Print the learning-rate table from validation people and the rate the protocol chooses.

    python -m experiments.learning_rate.choose [outputs/learning_rate]

The rate that serves all methods is the one with the highest validation R-FaceSim of LoRA+aug at 625 iterations among
those whose CLIP-T is at most 0.03 below the untouched base; each method's own best is shown beside it.
"""

import json
import sys
from pathlib import Path

import pandas as pd

from metalora.core.contracts import METHODS
from metalora.core.errors import UserError
from metalora.evaluation.curves import BOTH, CellKey, cell, cell_keys, choose_learning_rate
from metalora.evaluation.score_table import read_scores

CHOOSING = "lora_aug"
"""The method whose best rate serves all, as in the paper."""


def scores_by_rate(folder: Path) -> dict[float, pd.DataFrame]:
    """The newest score tables of every learning rate among studies that differ in nothing else.

    Older studies in the folder, of other weights or another benchmark, are left out.
    """
    manifests = sorted((folder / "evaluate").glob("*/manifest.json"), key=lambda path: path.stat().st_mtime)
    if not manifests:
        raise UserError("no scores to choose from", expected="evaluate/*/scores.parquet", got=str(folder))
    told = {path: json.loads(path.read_text()) for path in manifests}
    newest = told[manifests[-1]]["rates"]
    files: dict[float, list[Path]] = {}
    for path in manifests:
        if told[path]["rates"] == newest:
            files.setdefault(float(told[path]["learning_rate"]), []).append(path.parent / "scores.parquet")
    return {rate: read_scores(paths) for rate, paths in sorted(files.items())}


def main(folder: Path) -> None:
    """Print every rate, method and checkpoint, then the choice and each method's own best."""
    tables = scores_by_rate(folder)
    print(f"{'rate':>8} {'method':<10} {'iterations':>10} {'R-FaceSim':>10} {'CLIP-T':>8} {'faces found':>12}")
    for rate, scores in tables.items():
        for key in cell_keys(scores):
            found = cell(scores, key, class_noun=BOTH).scores
            print(
                f"{rate:>8g} {key.method:<10} {key.iterations:>10} {found['r_face_sim'].mean:>10.3f} "
                f"{found['clip_t'].mean:>8.3f} {found['face_found'].mean:>12.2f}"
            )
    print("\nHighest R-FaceSim at 625 iterations with CLIP-T at most 0.03 below the base (the first line decides):")
    for method in sorted(METHODS, key=lambda name: name != CHOOSING):
        usable = {rate: scores for rate, scores in tables.items() if CellKey(method, 1, 625) in cell_keys(scores)}
        if not usable:
            continue
        try:
            best = choose_learning_rate(usable, method=method).chosen
        except UserError as error:
            print(f"{method:<10} none: {error}")
            continue
        print(
            f"{method:<10} {best.rate:g}: R-FaceSim {best.r_face_sim:.3f}, CLIP-T {best.clip_t_drop:.3f} below the base"
        )


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/learning_rate"))
    except UserError as error:
        raise SystemExit(f"choose: {error}") from None
