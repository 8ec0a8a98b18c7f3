"""What a run tells while it runs: metrics.csv beside its files, and progress to whoever asked."""

import csv
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from metalora.adapters.bank import AdapterBank
from metalora.core.atomic import write_bytes, writing
from metalora.core.contracts import Batch, Sample
from metalora.core.errors import UserError
from metalora.core.metric_names import ITERATION, LOSS, LOSS_META, LOSS_WARM_UP
from metalora.core.schedule import BucketPlan
from metalora.training.identity_parallel import summed

Progress = Callable[[str, int, int], None]
"""Called as progress(stage, done, total)."""


class Metrics(Callback):
    """Writes the row that is due to a CSV file, and to the trainer's loggers: the loss (mean over the iterations since
    the last row, apart by phase where there are phases) and what the module and other callbacks logged.

    A row is due every `log_every_n_steps` of the trainer; only then is the device asked for numbers. A resumed run
    first drops the rows beyond its own start, and the losses of the unfinished row are in its saved state: a cut run
    ends up with the file of the uncut one. Several processes add their losses up for a row and for a state, and the
    first one writes.

    Args:
        path: the CSV file.
        columns: what the module and other callbacks log when a row is due.
        warm_up: whether an iteration (from 0) belongs to a warm-up; None: there is none.
    """

    def __init__(
        self, path: Path, *, columns: Sequence[str] = (), warm_up: Callable[[int], bool] | None = None
    ) -> None:
        self.path, self.columns, self._warm_up = path, tuple(columns), warm_up
        self._losses: list[Tensor] = []
        self._trainer: Trainer | None = None

    @property
    def names(self) -> list[str]:
        """The file's columns."""
        phases = [] if self._warm_up is None else [LOSS_WARM_UP.name, LOSS_META.name]
        return [ITERATION, LOSS.name, *phases, *self.columns]

    def state_dict(self) -> dict[str, Any]:
        """Losses since the last row."""
        losses = torch.stack(self._losses) if self._losses else torch.zeros(0)
        return {"losses": losses.cpu() if self._trainer is None else summed(losses, self._trainer).cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the unfinished row."""
        self._losses = list(state_dict["losses"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what earlier runs wrote up to where this one starts."""
        self._trainer = trainer
        self._losses = [loss.to(pl_module.device) for loss in self._losses]
        if not trainer.is_global_zero:  # what was summed up is the first process's
            self._losses = [torch.zeros_like(loss) for loss in self._losses]
            return
        kept = []
        if self.path.is_file():
            lines = [line for line in self.path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            for row in csv.DictReader(lines):
                if int(row[ITERATION]) <= trainer.global_step:
                    kept.append(",".join(row.get(name) or "" for name in self.names) + "\n")
        with writing(self.path):
            write_bytes(self.path, (",".join(self.names) + "\n" + "".join(kept)).encode())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Remember the loss; write a row if it is due."""
        self._losses.append(outputs["mean"])
        if not due(trainer, batch):
            return
        losses = summed(torch.stack(self._losses), trainer)
        self._losses.clear()
        if not trainer.is_global_zero:
            return
        values = {LOSS.name: float(losses.mean())}
        if self._warm_up is not None:
            warm = torch.tensor([self._warm_up(batch.iteration - age) for age in reversed(range(len(losses)))])
            values |= {
                metric.name: float(losses[chosen.to(losses.device)].mean())
                for metric, chosen in ((LOSS_WARM_UP, warm), (LOSS_META, ~warm))
                if chosen.any()
            }
        values |= {name: float(trainer.callback_metrics[name]) for name in self.columns}
        cells = (f"{values[name]:.8g}" if name in values else "" for name in self.names[1:])
        with writing(self.path), self.path.open("a") as file:
            file.write(",".join([str(batch.iteration + 1), *cells]) + "\n")
        tell(trainer, values, iteration=batch.iteration + 1)


def tell(trainer: Trainer, values: Mapping[str, float], *, iteration: int) -> None:
    """Hand numbers to the trainer's loggers, at the iteration that metrics.csv names."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=iteration)


class FiniteLoss(Callback):
    """Stops a run whose loss is no longer a number, before anything that came of it is kept.

    Losses are looked at when a row of metrics is due (the device is waited for then anyway). Whoever is about to write
    a state or a LoRA calls `check`, which looks at what was learned as well: a gradient may overflow where its loss
    did not.

    Args:
        bank: what is learned.
        key: the configuration key that most likely mends it.
    """

    def __init__(self, bank: AdapterBank, *, key: str) -> None:
        self.bank, self.key = bank, key
        self._unseen: list[tuple[int, tuple[Sample, ...], Tensor]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Remember the step; look if it is time."""
        self._unseen.append((batch.iteration + 1, batch.samples, outputs["finite_B"]))
        if due(trainer, batch):
            self._check_losses()

    def check(self) -> None:
        """Look at every step since the last look, and at what was learned.

        Raises:
            UserError: a loss that is not finite, with its iteration and whose it is; an adapter that is not finite.
        """
        reached = self._unseen[-1][0] if self._unseen else None
        self._check_losses()
        learned = [self.bank.rows, *(self.bank.meta_down.values() if self.bank.train_meta_down else ())]
        if not all(bool(torch.isfinite(values).all()) for values in learned):
            raise UserError(
                f"an adapter is not a number{'' if reached is None else f' at iteration {reached}'}; what was saved "
                "before is kept",
                expected="finite weights; a lower learning rate, or gradient_clip",
                got="infinite or undefined ones",
                key=self.key,
            )

    def _check_losses(self) -> None:
        if not self._unseen:
            return
        steps, self._unseen = self._unseen, []
        flags = torch.cat([finite_B for _, _, finite_B in steps]).cpu().split([len(samples) for _, samples, _ in steps])
        for (iteration, samples, _), finite_B in zip(steps, flags, strict=True):
            if not finite_B.all():
                lost = [s.identity for s, finite in zip(samples, finite_B.tolist(), strict=True) if not finite]
                raise UserError(
                    f"the loss is not a number at iteration {iteration}; what was saved before is kept",
                    expected="a finite loss; a lower learning rate",
                    got=f"{len(lost)} of {len(finite_B)} samples without, of {', '.join(dict.fromkeys(lost[:3]))}",
                    key=self.key,
                )


def due(trainer: Trainer, batch: Batch) -> bool:
    """Whether this iteration is logged."""
    return (batch.iteration + 1) % trainer.log_every_n_steps == 0


class ProgressReport(Callback):
    """Reports done and total twice a second at most, with the phase of the schedule where there is one.

    Args:
        progress: who is told.
        total: iterations in all.
        plan: Stage 1's schedule.
    """

    def __init__(self, progress: Progress, *, label: str, total: int, plan: BucketPlan | None = None) -> None:
        self._progress, self._label, self._total, self._plan = progress, label, total, plan
        self._told_at = 0.0
        self._told_stage = ""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Tell, unless it was told a moment ago."""
        done, stage, now = batch.iteration + 1, self._stage(batch.iteration), time.monotonic()
        if now - self._told_at >= 0.5 or done == self._total or stage != self._told_stage:
            self._progress(stage, done, self._total)
            self._told_at, self._told_stage = now, stage

    def _stage(self, iteration: int) -> str:
        if self._plan is None:
            return self._label
        visit = self._plan.visit(iteration)
        phase = "warm-up" if visit.warm_up else "Meta-Down"
        people = len(self._plan.buckets[visit.bucket])
        return f"{self._label}, bucket {visit.index + 1}/{self._plan.visits}, {phase}, {counted(people)}"


def counted(people: int) -> str:
    """`1 person`, `16 people`."""
    return "1 person" if people == 1 else f"{people} people"
