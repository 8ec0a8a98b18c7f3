"""The cells of sweeps: one folder each, `outputs/NAME/cells/HASH`, that says whose it is and how it stands.

`cell.json` says what the cell is, the lease who works on it, `done.json` or `failed.json` how it ended. A cell's hash
is over its composed configuration, so a sweep that is typed in other words, or grown, finds what it shares.
"""

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from metalora.core.atomic import write_json
from metalora.core.lease import STALE_SECONDS, is_alive, latest, owner, silence
from metalora.running.artifact import LEASE, config_hash
from metalora.running.inputs import Stamp, inputs_of, stamp_of

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
    inputs: tuple[str, ...] | None = None
    """The files and folders that its configuration names; None: nobody can tell."""

    @classmethod
    def of(cls, cfg: DictConfig, *, label: str = "", order: int = 0) -> "Cell":
        """The cell that a composed configuration describes."""
        values = OmegaConf.to_container(cfg, resolve=False, throw_on_missing=False)
        assert isinstance(values, dict)
        digest = config_hash({str(key): value for key, value in values.items() if key not in _ASIDE})
        folder = Path(str(cfg.paths.outputs)) / str(cfg.name) / CELLS / digest
        return cls(folder, str(cfg.task), label, order, inputs_of(cfg))

    def write(self) -> None:
        """Say what the cell is, so that it is missing and not unknown; how it ended before is forgotten."""
        write_json(self.folder / "cell.json", {"task": self.task, "label": self.label, "order": self.order})
        for name in ("done.json", "failed.json"):
            (self.folder / name).unlink(missing_ok=True)

    def is_done(self) -> bool:
        """Whether it ended well and what it made is still there."""
        found = _read(self.folder / "done.json")
        return bool(found) and all(os.path.exists(path) for path in found["made"])

    def is_kept(self, *, stamp: Stamp = stamp_of) -> bool:
        """Whether a sweep need not launch it: it is done, by files that it named, and what it read is as it was."""
        found = _read(self.folder / "done.json")
        if self.inputs is None or not found.get("made") or not self.is_done():
            return False
        return found.get("read") == self.stamps(stamp=stamp)

    def stamps(self, *, stamp: Stamp = stamp_of) -> dict[str, str]:
        """The state of what it reads."""
        return {path: stamp(path) for path in self.inputs or ()}

    def turns(self) -> int:
        """How often somebody has begun it."""
        return latest(self.folder / LEASE)

    def done(self, made: Sequence[Path], *, read: Mapping[str, str], seconds: float) -> None:
        """It ended well.

        Args:
            made: the files that make it done.
            read: `stamps` from before it began.
        """
        facts = {"made": [os.path.abspath(path) for path in made], "read": dict(read), "seconds": round(seconds, 1)}
        write_json(self.folder / "done.json", facts | _here())
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
