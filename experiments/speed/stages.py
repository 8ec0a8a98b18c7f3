"""What every stage of a finished `make reproduce` cost: seconds, peak memory, jobs; and the wall clock of all runs.

    python -m experiments.speed.stages [outputs/reproduce]

Reads the manifests that the run left, writes results/stages-DATE-NAME.json and prints it.
"""

import json
import os
import platform
import time
from pathlib import Path

import torch

from experiments.speed.measuring import command
from metalora.core.errors import UserError
from metalora.running.study import newest_study, runs, used


def main(arguments: list[str]) -> None:
    """Collect, print, write."""
    folder = Path(arguments[0] if arguments else "outputs/reproduce")
    study = newest_study(folder)
    if study is None:
        raise UserError("nothing was run here", expected="a folder that `make reproduce` made", got=str(folder))
    found = used(folder, study)
    jobs = {stage: len(manifests) for stage, manifests in found.manifests.items()}
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "commands": sorted({run["facts"]["command"] for run in runs(folder, study)}),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "stages": {
            stage: {
                "seconds_over_all_jobs": seconds,
                "peak_memory_mb": found.peak_memory_mb()[stage],
                "jobs": jobs[stage],
            }
            for stage, seconds in found.seconds().items()
        },
        "wall_seconds_by_run": [run["seconds"] for run in runs(folder, study)],
    }
    print(json.dumps(record, indent=2))
    target = Path(__file__).parent / "results" / f"stages-{record['date']}-{folder.resolve().name}.json"
    target.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    command("stages", main)
