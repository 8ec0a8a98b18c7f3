"""The state of an unfinished run: one file, replaced as a whole, read without pickle.

It carries the loader's integer, the bank, the optimizer with its per-row steps, and the configuration as plain values.
The frozen base is never in it.
"""

import io
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint

from metalora.core.atomic import write_bytes, writing
from metalora.core.contracts import Batch
from metalora.core.errors import UserError
from metalora.core.notice import notice
from metalora.training.identity_parallel import IdentityParallel, agreed


def clear_leftovers(path: Path) -> None:
    """Remove what a killed write of `path` left beside it."""
    for leftover in path.parent.glob(f".{path.name}.*"):
        leftover.unlink()


class AtomicCheckpointIO(CheckpointIO):
    """Writes beside, fsyncs and renames; loads tensors and plain values only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Replace `path` by the checkpoint, atomically. Raises UserError when the disk is full."""
        buffer = io.BytesIO()  # torch.save into a full disk raises a RuntimeError that says nothing
        torch.save(checkpoint, buffer)
        with writing(Path(path)):
            write_bytes(Path(path), buffer.getvalue())

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> Any:
        """Read a checkpoint; always weights-only."""
        return _load(Path(path), map_location=map_location or "cpu")

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint file."""
        Path(path).unlink(missing_ok=True)


@dataclass(frozen=True)
class SavedState:
    """What a state file says about itself."""

    iterations: int
    """Iterations it has behind it."""
    configuration: dict[str, Any]


def read_state(path: Path) -> SavedState | None:
    """What the state in `path` is of; None when there is none.

    Raises:
        UserError: the file is not a training state.
    """
    if not path.is_file():
        return None
    loaded = _load(path, mmap=True)
    return SavedState(loaded["global_step"], loaded["hyper_parameters"]["configuration"])


def _load(path: Path, **options: Any) -> dict[str, Any]:
    try:
        loaded = torch.load(path, **{"map_location": "cpu", "weights_only": True, **options})
        assert {"global_step", "hyper_parameters", "state_dict"} <= set(loaded)
    except Exception as error:
        raise UserError(
            f"{path} cannot be read",
            expected="the state of an unfinished run",
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            key="out",
        ) from error
    return loaded


class Exporter(Callback):
    """Calls `export(iterations)` when that many iterations are done; before the state is saved, so that a run cut in
    between does those iterations again and ends with the same files.

    Args:
        wanted: whether somebody wants what this many iterations made; asked after each one.
        export: writes the files, atomically.
        check: raises when there is nothing worth writing.
    """

    def __init__(
        self, wanted: Callable[[int], bool], export: Callable[[int], None], *, check: Callable[[], None] = lambda: None
    ) -> None:
        self._wanted, self._export, self._check = wanted, export, check

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Export if it is wanted."""
        if self._wanted(batch.iteration + 1):
            self._check()
            self._export(batch.iteration + 1)


class StateKeeper(Checkpoint):
    """Saves the state every so often, at the end, and when the run is asked to stop.

    A first Ctrl-C ends the run after the iteration at hand with its state saved; a second one aborts at once. Several
    processes stop and save together, at an iteration they agree upon (`agreed`). As a
    Checkpoint it runs after the other callbacks: what an iteration exports is on disk before the state says so.

    Args:
        path: the state file.
        end: iteration count at which the run is complete.
        seconds: save when this much time has passed since the last save.
        every: save at multiples of this many iterations as well.
        check: raises when there is nothing worth saving.
    """

    def __init__(
        self,
        path: Path,
        *,
        end: int,
        seconds: float,
        every: int | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.path, self.end, self.seconds, self.every, self.check = path, end, seconds, every, check
        self.interrupted = self.terminated = False
        self._tells = True
        self._saved_at = time.monotonic()
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen for Ctrl-C; as one of several processes also for SIGTERM, which Lightning would obey alone."""
        self._saved_at, self._tells = time.monotonic(), trainer.is_global_zero
        if threading.current_thread() is threading.main_thread():
            self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
            if isinstance(trainer.strategy, IdentityParallel):
                launcher = trainer.strategy.launcher

                def terminate(number: int, frame: FrameType | None) -> None:
                    if launcher is not None and not self.terminated:
                        launcher.kill(signal.SIGTERM)
                    self.terminated = True

                self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, terminate)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if not self._tells:
            return
        # Not from here: whoever holds the terminal's lock may be what was interrupted.
        text = "saving after the iteration at hand; Ctrl-C again stops now"
        threading.Thread(target=notice, args=(text,), daemon=True).start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Save if it is time."""
        done = batch.iteration + 1
        self.terminated |= trainer.received_sigterm
        late = time.monotonic() - self._saved_at >= self.seconds
        interrupted, terminated, late = agreed(
            (self.interrupted, self.terminated, late), trainer, iteration=batch.iteration
        )
        stop = interrupted or terminated
        if stop or late or done == self.end or (self.every and done % self.every == 0):
            self.check()
            trainer.save_checkpoint(self.path)
            self._saved_at = time.monotonic()
        if stop:
            self.interrupted, self.terminated = interrupted, terminated
            trainer.should_stop = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave Ctrl-C to whoever had it before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
