"""`metalora baseline`: a benchmark drawn by a published method in its own environment; a reason where it cannot be."""

from collections import Counter
from pathlib import Path

from omegaconf import DictConfig

from metalora.evaluation.baselines.launch import launch
from metalora.tasks.artifact import Artifact, config_hash
from metalora.tasks.prepare import ensure_benchmark
from metalora.tasks.progress import Board
from metalora.tasks.protocol import JOBS, Asked, write_jobs
from metalora.tasks.setting import Setting

_PLACES = ("weights", "code", "device", "providers", "onnx_provider", "offload")
"""Settings that say where a method runs, not what it draws."""


def run(cfg: DictConfig) -> None:
    """The task behind the command line."""
    setting = Setting.of(cfg)
    chosen = setting["baseline"]
    with Board() as board:
        ensure_benchmark(setting, progress=board.reporter("prepare"))
        classes = setting["classes"] if isinstance(setting["classes"], list) else [setting["classes"]]
        asked = Asked(setting, classes)
        jobs = asked.jobs("")
        config = {
            "task": "baseline",
            "method": chosen["method"],
            "settings": {key: value for key, value in chosen["settings"].items() if key not in _PLACES},
            "benchmark": asked.version,
            "jobs": config_hash({"files": [job.file for job in jobs]}),
        }
        artifact = Artifact(setting.folder("baseline", chosen["method"], Artifact(Path(), config).hash), config)
        if not artifact.complete:
            artifact.begin()
            write_jobs(artifact.folder / JOBS, jobs)
            report = board.reporter(chosen["method"])
            outcome = launch(
                chosen["runner"],
                method=chosen["method"],
                python=Path(chosen["python"]) if chosen["python"] else None,
                jobs=(artifact.folder / JOBS).resolve(),
                out=artifact.folder,
                settings=chosen["settings"],
                progress=lambda done, total: report("draw", done, total),
            )
            if outcome.skipped is not None:
                repository, commit = chosen["settings"]["repository"], chosen["settings"]["commit"]
                board.say(f"skipped {chosen['method']}: {outcome.skipped}")
                board.say(f"it needs {repository} at {commit[:10]} in an environment of its own (conf/baseline)")
                return
            for why, count in Counter(line.partition(": ")[2] for line in outcome.left_out).items():
                board.say(f"left out: {count} images: {why}")
            if outcome.left_out:
                board.say(
                    f"{len(outcome.left_out)} of {len(jobs)} images cannot be drawn; `metalora evaluate` scores the"
                    " others with allow_missing=true"
                )
            artifact.finish(images=len(jobs) - len(outcome.left_out), left_out=list(outcome.left_out))
        board.say(f"images: {artifact.folder}")
