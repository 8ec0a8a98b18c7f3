"""How fast a run is and how much memory it takes: `speed.csv`, apart from metrics.csv, which is the same every time."""

import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from metalora.core.atomic import writing
from metalora.core.contracts import Batch
from metalora.core.memory import device_peak_mb
from metalora.core.metric_names import IMAGES_PER_SECOND, ITERATION, PEAK_MEMORY, SPEED
from metalora.training.identity_parallel import summed
from metalora.training.monitor import due, tell

FILE = "speed.csv"


class Speed(Callback):
    """Adds a row to speed.csv beside the state whenever one is due, and tells the trainer's loggers.

    Wall clock between rows: the device is waited for at every row anyway, so none is waited for on its account. Of
    several processes the samples are counted together; memory is the first one's.
    """

    def __init__(self) -> None:
        self._since, self._samples = 0.0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The clock starts."""
        self._since, self._samples = time.perf_counter(), 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count; write a row if it is due."""
        self._samples += len(batch.samples)
        if not due(trainer, batch):
            return
        samples = float(summed(torch.tensor(float(self._samples)), trainer))
        now, iteration, since = time.perf_counter(), batch.iteration + 1, self._since
        self._since, self._samples = now, 0
        if not trainer.is_global_zero:
            return
        values = {
            IMAGES_PER_SECOND.name: samples / max(now - since, 1e-9),
            PEAK_MEMORY.name: float(device_peak_mb()),
        }
        tell(trainer, values, iteration=iteration)
        path = Path(trainer.default_root_dir) / FILE
        with writing(path), path.open("a") as file:
            if file.tell() == 0:
                file.write(",".join((ITERATION, *(metric.name for metric in SPEED))) + "\n")
            file.write(f"{iteration},{values[IMAGES_PER_SECOND.name]:.4g},{values[PEAK_MEMORY.name]:.0f}\n")
