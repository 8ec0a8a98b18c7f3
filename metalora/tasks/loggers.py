"""Which Lightning logger a run gets. Nothing but numbers goes to it: photos and samples stay on this machine."""

from pathlib import Path
from typing import Any

from metalora.core.errors import UserError
from metalora.tasks.setting import Setting


def training_logger(setting: Setting, *, name: str, folder: Path) -> Any:
    """`csv`: none beside the metrics.csv every run writes; `wandb`: a WandbLogger (imported only here)."""
    kind = setting["logger.name"]
    if kind == "csv":
        return False
    if kind == "wandb":
        from lightning.pytorch.loggers import WandbLogger

        folder.mkdir(parents=True, exist_ok=True)
        mode = setting["logger.mode"]
        return WandbLogger(
            project=setting["logger.project"],
            name=name,
            save_dir=str(folder),
            group=setting["name"],
            offline=mode == "offline",
            mode=mode,
        )
    raise UserError("unknown logger", expected="csv or wandb", got=str(kind), key="logger")
