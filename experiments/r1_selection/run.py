"""Appendix K: a Stage 1 for every r1, kept at several lengths, and a Stage 2 from every prior.

    python -m experiments.r1_selection.run [experiment=mini/r1_selection] [ranks=...] [steps=...] [jobs=2] [KEY=VALUE]

`ranks` are r1 (16,32,64), `steps` the Stage-1 lengths that Stage 2 starts from (200,400,...,1200), multiples of the
experiment's `stage1.prior_every`; other words go to `metalora` as they are (backbone=flux_dev
experiment=paper/r1_selection benchmark.root=...). `jobs` commands run at once, a thread each. Run again, it continues.
What it leaves: outputs/r1_selection/meta-train and outputs/r1_selection-R1-STEPS.
"""

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from experiments.commands import metalora

NAME = "r1_selection"


def name_of(meta_rank: int, steps: int) -> str:
    """The experiment folder of one prior's Stage 2."""
    return f"{NAME}-{meta_rank:03d}-{steps:06d}"


def main(words: Sequence[str]) -> None:
    """Stage 1 for all r1, then Stage 2 from every prior."""
    given = dict(word.split("=", 1) for word in words if "=" in word)
    experiment = given.pop("experiment", "mini/r1_selection")
    ranks = [int(rank) for rank in given.pop("ranks", "16,32,64").split(",")]
    steps = [int(step) for step in given.pop("steps", "200,400,600,800,1000,1200").split(",")]
    jobs = int(given.pop("jobs", "2"))
    rest = [f"{key}={value}" for key, value in given.items()]
    shared = [f"experiment={experiment}", "trainer.threads=1", *rest]

    def stage1(rank: int) -> Path:
        found = metalora(["meta-train", *shared, f"meta_rank={rank}"], say=f"Stage 1, r1 {rank}")
        assert found is not None
        return found.parent

    def stage2(rank: int, folder: Path, step: int) -> None:
        prior = folder / f"prior-{step:06d}.safetensors"
        name = [f"name={name_of(rank, step)}", f"meta_rank={rank}", f"priors.woman={prior}", "trainer.workers=1"]
        metalora(["reproduce", *shared, *name], say=f"Stage 2 from r1 {rank} after {step}")

    with ThreadPoolExecutor(jobs) as pool:
        folders = list(pool.map(stage1, ranks))
        tasks = [(rank, folder, step) for step in reversed(steps) for rank, folder in zip(ranks, folders, strict=True)]
        list(pool.map(lambda task: stage2(*task), tasks))


if __name__ == "__main__":
    main(sys.argv[1:])
