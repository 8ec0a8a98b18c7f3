"""Checkpoints that others wait for: a run of 750 iterations also writes the LoRAs at 250 that a waiting job wants.

A wish is an empty file beside the lease of the trajectory's folder. Where it comes too late, whoever wished
trains those iterations anew.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from metalora.core.contracts import Batch

_PREFIX = "wish-"


class Wishes:
    """The iteration counts at which somebody wants LoRAs of the trajectory in `out`."""

    def __init__(self, out: Path) -> None:
        self._folder = out / ".lease"

    def ask(self, iterations: Iterable[int]) -> None:
        """Wish for LoRAs at these iterations."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for count in iterations:
            (self._folder / f"{_PREFIX}{count:06d}").touch()

    def drop(self, iterations: Iterable[int]) -> None:
        """They are there, or somebody makes them."""
        for count in iterations:
            (self._folder / f"{_PREFIX}{count:06d}").unlink(missing_ok=True)

    def has(self, iterations: int) -> bool:
        """Whether somebody wishes for LoRAs at exactly this point."""
        return (self._folder / f"{_PREFIX}{iterations:06d}").exists()


class WishExporter(Callback):
    """Calls `export(iterations)` where somebody wishes for it and the run itself would not.

    Args:
        own: iteration counts that are exported anyway.
        export: writes the files, atomically.
        check: raises when there is nothing worth writing.
    """

    def __init__(
        self, wishes: Wishes, *, own: Iterable[int], export: Callable[[int], None], check: Callable[[], None]
    ) -> None:
        self._wishes, self._own, self._export, self._check = wishes, frozenset(own), export, check

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Export if somebody waits for this iteration."""
        done = batch.iteration + 1
        if done not in self._own and self._wishes.has(done):
            self._check()
            self._export(done)
