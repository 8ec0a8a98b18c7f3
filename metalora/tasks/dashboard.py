"""`metalora dashboard`: the wandb workspace of a project, made from code."""

from pathlib import Path

from omegaconf import DictConfig

from metalora.core.atomic import write_json
from metalora.core.errors import UserError
from metalora.core.notice import notice
from metalora.reporting.dashboard import definition, workspace
from metalora.running.setting import Setting
from metalora.tracking.loggers import with_logger


def run(cfg: DictConfig) -> None:
    """The task behind the command line: save the workspace, or, offline, write what would be saved."""
    setting = Setting.of(cfg)
    if setting["logger.name"] != "wandb":
        raise UserError("a dashboard is wandb's", expected="logger=wandb", got=setting["logger.name"], key="logger")
    logger = with_logger(setting, say=notice)["logger"]
    online = logger["mode"] == "online"
    made = workspace(entity=logger["entity"] or (_own_entity() if online else "me"), project=logger["project"])
    path = Path(setting["out"] or Path(setting["paths.outputs"]) / setting["name"] / "dashboard" / "workspace.json")
    write_json(path, definition(made))
    print(f"definition: {path}")
    if online:
        try:
            made.save()
        except Exception as error:
            lines = str(error).splitlines() or [""]
            raise UserError(
                "the workspace was not saved",
                expected="a project of yours that has runs",
                got=f"{type(error).__name__}: {lines[0]}",
                key="logger.entity, logger.project",
            ) from error
        print(f"workspace: {made.url}")


def _own_entity() -> str:
    import wandb

    return str(wandb.Api(timeout=10).default_entity)
