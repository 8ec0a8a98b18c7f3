"""The cells of sweeps: one folder each, `outputs/NAME/cells/HASH`, that says whose it is and how it stands.

`cell.json` says what the cell is, the lease who works on it, `done.json` or `failed.json` how it ended. A cell's hash
is over its composed configuration, so a sweep that is typed in other words, or grown, finds what it shares.
"""

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from metalora.core.atomic import write_json
from metalora.core.lease import STALE_SECONDS, is_alive, owner, silence
from metalora.tasks.artifact import LEASE, config_hash

CELLS = "cells"
_ASIDE = ("hydra", "name", "debug", "paths", "trainer", "logger")
"""What says where and how a cell is computed, not what it is."""

State = Literal["done", "running", "failed", "missing"]


@dataclass(frozen=True)
class Standing:
    """How a cell stands, and one line about it."""

    state: State
    text: str = ""
    mendable: bool = False
    """It failed through what was typed or given, and whoever typed can mend it."""


@dataclass(frozen=True)
class Cell:
    """One cell of a sweep: `label` is what tells it from the others, `order` its place in the sweep."""

    folder: Path
    task: str
    label: str = ""
    order: int = 0

    @classmethod
    def of(cls, cfg: DictConfig, *, label: str = "", order: int = 0) -> "Cell":
        """The cell that a composed configuration describes."""
        values = OmegaConf.to_container(cfg, resolve=False, throw_on_missing=False)
        assert isinstance(values, dict)
        digest = config_hash({str(key): value for key, value in values.items() if key not in _ASIDE})
        return cls(Path(str(cfg.paths.outputs)) / str(cfg.name) / CELLS / digest, str(cfg.task), label, order)

    def write(self) -> None:
        """Say what the cell is, so that it is missing and not unknown; an earlier failure is forgotten."""
        write_json(self.folder / "cell.json", {"task": self.task, "label": self.label, "order": self.order})
        (self.folder / "failed.json").unlink(missing_ok=True)

    def is_done(self) -> bool:
        """Whether it ended well and what it made is still there."""
        found = _read(self.folder / "done.json")
        return bool(found) and all(Path(path).exists() for path in found["made"])

    def done(self, made: Sequence[Path], *, seconds: float) -> None:
        """It ended well."""
        facts = {"made": [str(path) for path in made], "seconds": round(seconds, 1), **_here()}
        write_json(self.folder / "done.json", facts)
        (self.folder / "failed.json").unlink(missing_ok=True)

    def failed(self, reason: str, *, mendable: bool, seconds: float) -> None:
        """It ended badly, for this reason; `mendable`: bad input."""
        facts = {"reason": reason, "mendable": mendable, "seconds": round(seconds, 1), **_here()}
        write_json(self.folder / "failed.json", facts)

    def standing(self) -> Standing:
        """How it stands now. Who is silent on another machine counts as lost after a while."""
        lease = self.folder / LEASE
        found = owner(lease)
        if found is not None and not found.over:
            alive = is_alive(lease, found)
            quiet = silence(lease) if alive is None else 0.0
            where = f"{found.host}, process {found.pid}"
            if alive or (alive is None and quiet < STALE_SECONDS):
                since = time.strftime("%H:%M:%S", time.localtime(found.since))
                return Standing("running", ", ".join(part for part in (f"{where}, since {since}", found.told) if part))
            if not self.is_done():
                return Standing("missing", f"lost on {where}")
        if self.is_done():
            told = _read(self.folder / "done.json")
            return Standing("done", f"{told['seconds']:.0f} s on {told['host']}")
        if told := _read(self.folder / "failed.json"):
            return Standing("failed", str(told["reason"]), mendable=bool(told["mendable"]))
        return Standing("missing")


def cells_of(folder: Path) -> list[Cell]:
    """Every cell in `outputs/NAME`, in the order of its sweep."""
    found = []
    for path in (folder / CELLS).glob("*/cell.json"):
        if told := _read(path):
            found.append(Cell(path.parent, told["task"], told["label"], told["order"]))
    return sorted(found, key=lambda cell: (cell.task, cell.order, cell.label))


def _here() -> dict[str, Any]:
    return {"host": platform.node(), "ended": time.strftime("%Y-%m-%d %H:%M:%S")}


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
