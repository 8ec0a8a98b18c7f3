"""Which dashboard a run tells (`logger=`), and what of its configuration: what was chosen among, never free text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from metalora.core.errors import UserError
from metalora.core.notice import notice
from metalora.running.setting import Setting
from metalora.tracking.tensorboard_run import TensorBoardRun, require_tensorboard
from metalora.tracking.tracker import Say, Tracker
from metalora.tracking.wandb_run import WandbRun, settled_mode

CLASSES = ("man", "woman")
KINDS = ("csv", "wandb", "tensorboard")
TOLD = (
    "backbone.name",
    "backbone.dtype",
    "benchmark.name",
    "protocol.name",
    "method.name",
    "class_noun",
    "rank",
    "meta_rank",
    "iterations",
    "learning_rate",
    "gradient_clip",
    "batch_size",
    "cohort_size",
    "resolutions",
    "seed",
    "stage1.rank",
    "stage1.slots",
    "stage1.q_bucket",
    "stage1.q_warmup",
    "stage1.q_total",
    "stage1.batch_size",
    "stage1.uses_per_example",
    "stage1.learning_rate",
)
"""Keys of the configuration that a dashboard is told; everything else may name a person or a file."""


def with_logger(setting: Setting, *, say: Say = notice) -> Setting:
    """A copy whose logger is settled once for all jobs of a run: its mode, and the group that a sweep's runs share.

    Raises:
        UserError: no such logger or mode; TensorBoard is not installed.
    """
    logger = dict(setting.values["logger"])
    if logger["name"] not in KINDS:
        raise UserError("unknown logger", expected=", ".join(KINDS), got=str(logger["name"]), key="logger")
    if logger["name"] == "tensorboard":
        require_tensorboard()
    if logger["name"] == "wandb":
        logger |= {"mode": settled_mode(logger["mode"], say=say), "group": logger["group"] or _experiment()}
    return setting.changed(logger=logger)


def _experiment() -> str | None:
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return None
    return HydraConfig.get().runtime.choices.get("experiment")


def tracked(
    setting: Setting,
    *,
    task: str,
    digest: str,
    folder: Path,
    facts: Mapping[str, str | int] | None = None,
    say: Say = notice,
) -> Tracker:
    """The tracker of one run of a task; use it as a context.

    Args:
        setting: of `with_logger`.
        digest: of what the run makes; with the task it is the run's id, so a continued run continues there too.
        folder: what the dashboard's library writes goes here.
        facts: what else is told, e.g. the method of a job.
        say: told where the run can be seen, and what went wrong.
    """
    logger = setting["logger"]
    if logger["name"] == "csv":
        return Tracker()
    config = _told(setting.values) | dict(facts or {}) | {"task": task}
    if logger["name"] == "tensorboard":
        return Tracker(TensorBoardRun(folder / "tensorboard", config=config), say=say)
    if logger["mode"] == "disabled":
        return Tracker()
    try:
        return Tracker(_wandb(logger, task=task, digest=digest, folder=folder, config=config, say=say), say=say)
    except Exception as error:
        say(f"logger=wandb: {type(error).__name__}, so nothing goes to it; metrics.csv has the numbers")
        return Tracker()


def _wandb(
    logger: Mapping[str, Any], *, task: str, digest: str, folder: Path, config: Mapping[str, Any], say: Say
) -> WandbRun:
    parts = [task, *(str(config[key]) for key in ("method", "class_noun", "rank") if key in config), digest]
    return WandbRun(
        project=logger["project"],
        entity=logger["entity"],
        group=logger["group"],
        job_type=task,
        name="-".join(parts),
        run_id=f"{task}-{digest}",
        config=config,
        folder=folder,
        mode=logger["mode"],
        images=logger["upload_images"] is True,
        finish_seconds=float(logger["finish_seconds"]),
        say=say,
    )


def _told(values: Mapping[str, Any]) -> dict[str, Any]:
    told = {}
    for key in TOLD:
        value: Any = values
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        free = key == "class_noun" and value not in CLASSES  # anybody's word
        if value is not None and value != MISSING and not free:
            told[key.removesuffix(".name").replace(".", "_")] = value
    return told
