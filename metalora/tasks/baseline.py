"""`metalora baseline`: a benchmark drawn by a published method in its own environment; a reason where it cannot be."""

import json
import os
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from metalora.core.atomic import write_json
from metalora.core.errors import UserError
from metalora.evaluation.baselines.launch import launch
from metalora.evaluation.baselines.process import digest
from metalora.running.artifact import Artifact, config_hash
from metalora.running.inputs import stamp_of
from metalora.running.progress import Board, Progress
from metalora.running.protocol import JOBS, Asked, write_jobs
from metalora.running.setting import Setting
from metalora.tasks.prepare import CLASSES, ensure_benchmark

_PLACES = ("code", "device", "providers", "onnx_provider", "offload")
"""Settings that say where a method runs, not what it draws."""


def run(cfg: DictConfig) -> None:
    """The task behind the command line."""
    setting = Setting.of(cfg)
    chosen, classes = setting["baseline"], setting.words("classes", known=CLASSES)
    with Board() as board:
        ensure_benchmark(setting, progress=board.reporter("prepare"))
        asked = Asked(setting, classes)
        jobs = asked.jobs("")
        report = board.reporter(chosen["method"])
        made_with = {
            "method": chosen["method"],
            "settings": drawn_with(chosen["settings"], cache=setting.cache_root, progress=report),
        }
        config = {
            "task": "baseline",
            **made_with,
            "benchmark": asked.version,
            "jobs": config_hash({"files": [job.file for job in jobs]}),
        }
        artifact = Artifact(setting.folder("baseline", chosen["method"], Artifact(Path(), config).hash), config)
        if not artifact.complete:
            artifact.begin()
            write_jobs(artifact.folder / JOBS, jobs)
            outcome = launch(
                chosen["runner"],
                method=chosen["method"],
                python=Path(chosen["python"]) if chosen["python"] else None,
                jobs=(artifact.folder / JOBS).resolve(),
                out=artifact.folder,
                settings=chosen["settings"],
                made_with=config_hash(made_with),
                progress=lambda done, total: report("draw", done, total),
            )
            if outcome.skipped is not None:
                repository, commit = chosen["settings"]["repository"], chosen["settings"]["commit"]
                board.say(f"skipped {chosen['method']}: {outcome.skipped}")
                at = f" at {commit[:10]}" if commit else ""
                board.say(f"it needs {repository}{at} in an environment of its own (conf/baseline)")
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


def drawn_with(settings: Mapping[str, Any], *, cache: Path, progress: Progress) -> dict[str, Any]:
    """What images depend on beside their job: the settings, the checkout's commit, and weights by their content.

    Raises:
        UserError: the checkout is at another commit than the settings name.
    """
    found = {key: value for key, value in settings.items() if key not in _PLACES}
    found["commit"] = _commit(settings["code"], settings["commit"])
    found["weights"] = {}
    for done, (name, place) in enumerate(settings["weights"].items(), start=1):
        found["weights"][name] = _content(place, cache=cache)
        progress("read weights", done, len(settings["weights"]))
    return found


def _commit(code: str | None, wanted: str | None) -> str | None:
    """The commit of a checkout; the wanted one where there is no checkout, or none of git's."""
    if not code or not (Path(code) / ".git").exists():
        return wanted
    try:
        told = subprocess.run(["git", "-C", code, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        found, why = told.stdout.strip(), ""
    except (OSError, subprocess.CalledProcessError) as error:
        found, why = None, str(getattr(error, "stderr", "") or error).strip()
    if wanted and found != wanted:
        raise UserError(
            f"the checkout {code} is not at the commit that the settings name",
            expected=f"{wanted}, or baseline.settings.commit=null for whatever is there",
            got=found or why,
            key="baseline.settings.code, baseline.settings.commit",
        )
    return found


def _content(place: str | None, *, cache: Path) -> str | None:
    """sha256 of a file or folder of weights, read anew only when it has changed; what does not lie here keeps its name,
    which may be one of the hub's."""
    if not place or not Path(place).exists():
        return place
    seen = config_hash({"path": os.path.abspath(place), "stamp": stamp_of(place)})
    known = cache / "weights" / f"{seen}.json"
    if not known.is_file():
        write_json(known, {"path": os.path.abspath(place), "sha256": digest(Path(place))})
    return str(json.loads(known.read_text())["sha256"])
