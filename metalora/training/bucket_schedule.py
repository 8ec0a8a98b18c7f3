"""Lets the schedule act on the bank: who sits in which slot, and whether Meta-Down trains (Algorithm 1)."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from metalora.adapters.bank import AdapterBank
from metalora.adapters.optimizer import BankAdamW
from metalora.core.contracts import Batch
from metalora.core.metric_names import BUCKET, PHASE
from metalora.core.schedule import SLOTS
from metalora.people.share import Share
from metalora.training.monitor import due


def bank_identities(share: Share) -> list[str]:
    """The names of a process's rows at the start: its people when rows persist, else one name per slot."""
    plan = share.plan
    names = sorted(plan.images) if share.slots == "persist" else [f"slot {slot}" for slot in range(plan.slots)]
    return [names[row] for row in share.rows_of(share.rank)]


class BucketSchedule(Callback):
    """Seats the identities of a bucket when its visit begins, and opens Meta-Down when the warm-up is over.

    reset: the rows start afresh from (seed, identity, visit) and the optimizer forgets theirs. reuse: row k keeps its
    numbers and moments for its next occupant. persist: every identity has a row of its own, nothing moves.
    What a visit did at its start is in the bank's saved state, so a run resumed inside a visit only takes its seats.

    Args:
        share: the schedule, and whose rows are in the bank.
        bank: made with `bank_identities(share)`.
    """

    def __init__(self, share: Share, bank: AdapterBank) -> None:
        assert share.slots in SLOTS
        self.plan, self.share, self.bank, self.slots = share.plan, share, bank, share.slots
        self._seated = -1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Bring the bank to where the schedule stands at this iteration."""
        visit = self.plan.visit(batch.iteration)
        if visit.index != self._seated:
            seated = self.share.seated(self.plan.buckets[visit.bucket])
            self._seat(trainer, visit.index, seated, begins=visit.position == 0)
        if self.bank.train_meta_down == visit.warm_up:
            self.bank.train_meta_down = not visit.warm_up
        if due(trainer, batch):
            values: dict[str, Any] = {BUCKET.name: float(visit.bucket), PHASE.name: float(not visit.warm_up)}
            pl_module.log_dict(values, batch_size=len(batch.samples), logger=False)

    def _seat(self, trainer: Trainer, visit: int, bucket: tuple[str, ...], *, begins: bool) -> None:
        self._seated = visit
        if self.slots == "persist":
            return
        if self.slots == "reuse" or not begins:
            self.bank.assign_rows(bucket)
            return
        self.bank.reset_rows(bucket, visit=visit)
        optimizer = trainer.optimizers[0]
        assert isinstance(optimizer, BankAdamW)
        optimizer.reset_rows()
