"""Which Lightning logger a run gets. Nothing but numbers goes to it: photos, samples and people's names stay here."""

from pathlib import Path
from typing import Any

from metalora.core.errors import UserError
from metalora.tasks.setting import Setting


def training_logger(setting: Setting, *, name: str, folder: Path) -> Any:
    """`csv`: none beside the metrics.csv every run writes; `wandb`: a WandbLogger (imported only here).

    Args:
        name: of the run; it leaves this machine, so it names nobody.
    """
    kind = setting["logger.name"]
    if kind == "csv":
        return False
    if kind == "wandb":
        import wandb
        from lightning.pytorch.loggers import WandbLogger

        # The command line, the console and the repository would tell file names, hence people's; a host, its owner's.
        silent = wandb.Settings(
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_disable_stats=True,
            host="-",
            console="off",
            disable_git=True,
            disable_code=True,
        )
        folder.mkdir(parents=True, exist_ok=True)
        mode = setting["logger.mode"]
        return WandbLogger(
            project=setting["logger.project"],
            name=name,
            save_dir=str(folder),
            group=setting["name"],
            offline=mode == "offline",
            mode=mode,
            settings=silent,
        )
    raise UserError("unknown logger", expected="csv or wandb", got=str(kind), key="logger")
