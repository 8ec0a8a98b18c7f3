"""Which people are a process's own when several train Stage 1 together: whole people, so that nobody's Mid and Up are
ever needed by another process. A pure function of (plan, rank, world): nobody has to be asked.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from metalora.core.contracts import Sample
from metalora.core.errors import UserError
from metalora.core.schedule import BucketPlan


@dataclass(frozen=True)
class Share:
    """The people of one process: in every bucket, the one in slot k belongs to process k mod `world`.

    Args:
        plan: the schedule.
        slots: reset, reuse or persist; decides what a bank row is (see `BucketPlan.rows`).
        rank: this process, from 0.
        world: how many there are.

    Raises:
        UserError: more processes than people of a bucket.
    """

    plan: BucketPlan
    slots: str
    rank: int
    world: int

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.world
        if self.world > self.plan.slots:
            raise UserError(
                "more processes than people of a bucket: some would have nobody to train",
                expected=f"at most {self.plan.slots}, or larger buckets",
                got=str(self.world),
                key="trainer.devices, trainer.nodes; stage1.batch_size, stage1.q_bucket",
            )

    @property
    def total(self) -> int:
        """Rows of the whole bank."""
        return len(self.plan.images) if self.slots == "persist" else self.plan.slots

    def rows_of(self, rank: int) -> list[int]:
        """The rows of the whole bank that a process holds, ascending; its own bank has them in this order."""
        if self.slots != "persist":
            return list(range(rank, self.plan.slots, self.world))
        rows = self.plan.rows(slots=self.slots)
        return sorted(rows[identity] for bucket in self.plan.buckets for identity in bucket[rank :: self.world])

    def seated(self, bucket: Sequence[str]) -> tuple[str, ...]:
        """This process's people of a bucket, by their slots."""
        return tuple(bucket[self.rank :: self.world])

    def samples(self, samples: Sequence[Sample]) -> tuple[Sample, ...]:
        """This process's part of an iteration's samples, perhaps none; their rows are those of its own bank."""
        own = self._own_rows
        return tuple(replace(sample, row=own[sample.row]) for sample in samples if sample.row in own)

    def loads(self, samples: Sequence[Sample]) -> list[int]:
        """How many of an iteration's samples each process has; all wait for the one with most of them."""
        counts = Counter(self._owners[sample.row] for sample in samples)
        return [counts[rank] for rank in range(self.world)]

    @cached_property
    def _owners(self) -> dict[int, int]:
        return {row: rank for rank in range(self.world) for row in self.rows_of(rank)}

    @cached_property
    def _own_rows(self) -> dict[int, int]:
        return {row: index for index, row in enumerate(self.rows_of(self.rank))}
