"""`metalora report`: figures, tables, index.html and summary.json from the scores of one study."""

import json
import platform
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from metalora.core.errors import UserError
from metalora.evaluation.curves import CellKey
from metalora.reporting.report import Report, write_report
from metalora.tasks.artifact import MANIFEST, config_hash
from metalora.tasks.setting import Setting

STAGES = ("prepare", "meta-train", "personalize", "generate", "evaluate")
"""What `seconds` counts, in the order of the data flow."""


def run(cfg: DictConfig) -> None:
    """The task behind the command line."""
    setting = Setting.of(cfg)
    folder = Path(setting["scores"])
    found = _manifests(folder, "evaluate")
    if not found:
        raise UserError(
            "no scores to report", expected="evaluate/*/scores.parquet below it", got=str(folder), key="scores"
        )
    newest = max(found, key=lambda path: path.stat().st_mtime)
    study = json.loads(newest.read_text())["config"].get("study", "")
    outcome = report(folder, study=study, headline=setting["headline"], facts={"scores": str(folder)})
    print(outcome.text)
    print(outcome.headline)
    print(f"report: {outcome.index}")


def study_hash(setting: Setting) -> str:
    """Over everything that must be equal for cells to be compared: all but method, rank and iterations."""
    shared = {
        key: setting[key]
        for key in ("resolutions", "meta_rank", "learning_rate", "batch_size", "gradient_clip", "stage1", "seed")
    }
    sampling = {key: value for key, value in setting["sampling"].items() if key != "batch_size"}
    return config_hash(
        shared
        | {
            "backbone": setting.backbone_key,
            "people": {key: setting["people"][key] for key in ("kind", "count", "photos")},
            "sampling": sampling,
            "protocol": setting["protocol"],
            "benchmark": setting["benchmark.name"],
        }
    )


def facts_of(setting: Setting) -> dict[str, str]:
    """How a study was run, for the report's head."""
    return {
        "command": f"metalora reproduce experiment={setting['backbone.name']}/reproduce",
        "protocol": setting["protocol.name"],
        "learning rate": f"{setting['learning_rate']:g}, the same for all methods",
        "Meta-Down rank": str(setting["meta_rank"]),
        "seed": str(setting["seed"]),
        "machine": f"{platform.processor() or platform.machine()}, {setting['trainer.device']}",
    }


def report(
    folder: Path, *, study: str, headline: dict[str, Any], facts: dict[str, str], wall: dict[str, float] | None = None
) -> Report:
    """Write `folder/report` and `folder/summary.json` from every finished evaluation of a study in `folder`."""
    scores = [
        path.parent / "scores.parquet"
        for path in _manifests(folder, "evaluate")
        if json.loads(path.read_text())["config"].get("study", "") == study
    ]
    return write_report(
        folder / "report",
        scores=scores,
        summary_path=folder / "summary.json",
        world="the mini world: synthetic people, tiny models" if "mini" in _worlds(folder) else "FLUX.1-dev",
        seconds=_seconds(folder) | (wall or {}),
        facts=facts,
        target=CellKey(headline["target"], headline["target_rank"], headline["target_iterations"]),
        method=headline["method"],
    )


def _manifests(folder: Path, stage: str) -> list[Path]:
    return sorted((folder / stage).glob(f"*/{MANIFEST}"))


def _worlds(folder: Path) -> set[str]:
    return {json.loads(path.read_text())["config"]["backbone"]["name"] for path in _manifests(folder, "generate")}


def _seconds(folder: Path) -> dict[str, float]:
    """Seconds each stage took, added over its jobs (which run side by side)."""
    found: dict[str, float] = {}
    for stage in STAGES:
        manifests = [json.loads(path.read_text()) for path in _manifests(folder, stage)]
        if manifests:
            found[stage] = round(sum(manifest["seconds"] for manifest in manifests), 1)
    return found
