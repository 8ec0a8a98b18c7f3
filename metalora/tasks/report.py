"""`metalora report`: figures, tables, index.html and summary.json from the scores of one study."""

import json
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from metalora.core.atomic import write_json
from metalora.core.errors import UserError
from metalora.core.notice import notice
from metalora.evaluation.curves import CellKey
from metalora.evaluation.score_table import read_scores
from metalora.reporting.report import Report, write_report
from metalora.reporting.world import write_world_page
from metalora.running.artifact import config_hash, git_revision, stored_hash
from metalora.running.setting import Setting
from metalora.running.study import newest_study, runs, used
from metalora.tracking.loggers import tracked, with_logger
from metalora.tracking.scores import tell_cells
from metalora.tracking.tracker import Thing

WORLDS = {
    "mini": "the mini world: synthetic people, tiny models",
    "flux_dev": "FLUX.1-dev",
    "sdxl": "SDXL",
    "sd35": "Stable Diffusion 3.5",
    "sd15": "Stable Diffusion 1.5",
}
"""What numbers were measured on, by the base model's name."""


def run(cfg: DictConfig) -> None:
    """The task behind the command line."""
    setting = with_logger(Setting.of(cfg), say=notice)
    folder = Path(setting["scores"])
    study = newest_study(folder)
    if study is None:
        raise UserError(
            "no scores to report", expected="evaluate/*/scores.parquet below it", got=str(folder), key="scores"
        )
    earlier = runs(folder, study)
    facts = earlier[-1]["facts"] if earlier else {"scores": str(folder)}
    wall = sum(run["seconds"] for run in earlier) if earlier else None
    out = Path(setting["out"]) if setting["out"] else None
    outcome = report(folder, study=study, headline=setting["headline"], facts=facts, wall=wall, out=out)
    tell_study(setting, folder=folder, study=study, task="report")
    print(outcome.text)
    print(outcome.headline)
    print(f"report: {outcome.index}")


def world_of(names: Iterable[str]) -> str:
    """What numbers were measured on, in words; a base model of another program's by its own name."""
    return " and ".join(sorted({WORLDS.get(name, name) for name in names}))


def tell_study(setting: Setting, *, folder: Path, study: str, task: str) -> None:
    """The trade-off of a whole study to the dashboard, and which scores it came from."""
    digest = config_hash({"task": task, "study": study})
    with tracked(setting, task=task, digest=digest, folder=folder / "report", facts={"method": "several"}) as tracker:
        if tracker.listens:
            found = used(folder, study).scores
            tell_cells(tracker, read_scores(found))
            for scores in found:
                tracker.used(Thing("scores", stored_hash(scores.parent)))


def facts_of(setting: Setting, *, overrides: Sequence[str]) -> dict[str, str]:
    """How a study was run, for the report's head.

    Args:
        overrides: what was typed after `metalora`, as Hydra tells it.
    """
    typed = [word for word in overrides if not word.startswith("task=")]
    return {
        "command": " ".join(["metalora reproduce", *typed]),
        "protocol": setting["protocol.name"],
        "learning rate": f"{setting['learning_rate']:g}, the same for all methods",
        "Meta-Down rank": str(setting["meta_rank"]),
        "seed": str(setting["seed"]),
        "machine": f"{platform.processor() or platform.machine()}, {setting['trainer.device']}",
    }


def report(
    folder: Path,
    *,
    study: str,
    headline: dict[str, Any],
    facts: dict[str, str],
    wall: float | None = None,
    again: bool = True,
    out: Path | None = None,
) -> Report:
    """Write `folder/report` and `folder/summary.json` from every finished evaluation of a study in `folder`.

    Args:
        out: write the page and summary.json into this folder instead.
        wall: wall seconds of the study's runs up to now.
        again: whether to draw even what this revision has drawn from the very same scores already.
    """
    found = used(folder, study)
    tables = [(path.parent.name, path.stat().st_mtime_ns, path.stat().st_size) for path in found.scores]
    key = config_hash({"tables": tables, "headline": headline, "study": study, "git": git_revision()})
    pages, summary = out or folder / "report", (out or folder) / "summary.json"
    stamp, page = pages / "made.json", pages / "index.html"
    if not again and all(path.is_file() for path in (stamp, page, summary)):
        made = json.loads(stamp.read_text())
        if made["key"] == key:
            return Report(page, json.loads(summary.read_text()), made["headline"], made["text"])
    stamp.unlink(missing_ok=True)
    memory = ", ".join(f"{stage} {mb / 1024:.1f} GB" for stage, mb in found.peak_memory_mb().items())
    worlds = found.worlds()
    about_world = write_world_page(pages).name if worlds == {"mini"} else ""
    outcome = write_report(
        pages,
        scores=found.scores,
        summary_path=summary,
        world=world_of(worlds),
        seconds=found.seconds() | ({} if wall is None else {"wall clock, all runs": round(wall, 1)}),
        facts=facts | ({"peak memory": memory} if memory else {}),
        target=CellKey(headline["target"], headline["target_rank"], headline["target_iterations"]),
        method=headline["method"],
        about_world=about_world,
    )
    write_json(stamp, {"key": key, "headline": outcome.headline, "text": outcome.text})
    return outcome
