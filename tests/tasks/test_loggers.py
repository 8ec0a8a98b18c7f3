"""What leaves the machine with `logger=wandb`: numbers, never a person's name or file."""

from pathlib import Path
from typing import Any

import pytest

from metalora.tasks.loggers import training_logger
from metalora.tasks.setting import Setting


def test_wandb_is_told_no_command_line_and_no_console(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr("lightning.pytorch.loggers.WandbLogger", lambda **options: told.update(options))
    logger = {"name": "wandb", "project": "p", "mode": "offline"}
    training_logger(Setting({"logger": logger, "name": "study"}), name="lora-r1-abc", folder=tmp_path)
    assert told["name"] == "lora-r1-abc" and told["group"] == "study" and told["offline"]
    settings = told["settings"]
    assert settings.x_disable_meta and settings.disable_git and settings.disable_code and settings.console == "off"
    assert settings.x_disable_machine_info and settings.x_disable_stats and settings.host == "-"
