"""Stage 1's schedule as plain arithmetic over iterations (Algorithm 1): buckets, visits, warm-up, the exact end.

A *bucket* is a set of identities. A *visit* is q_bucket consecutive iterations with one bucket; a *pass* visits every
bucket once, in an order of its own. All is a pure function of (plan, iteration): nothing is counted along the way.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import torch

from metalora.core.errors import UserError
from metalora.core.noise import generator

SLOTS = ("reset", "reuse", "persist")
"""What an identity slot starts from when its bucket comes up. reset: a fresh Mid and Up. reuse: slot k goes on with the
parameters and moments of its last occupant. persist: every identity goes on with its own."""


@dataclass(frozen=True)
class Visit:
    """Where an iteration stands in the schedule."""

    index: int
    """How many visits came before this one."""
    pass_index: int
    """How many times every bucket has been visited before."""
    bucket: int
    start: int
    """Iteration at which this visit begins."""
    position: int
    """Iterations of this visit before this one."""
    warm_up: bool
    """Whether only Mid and Up are trained now."""


@dataclass(frozen=True)
class BucketPlan:
    """Algorithm 1 and section 3: which identities train at which iteration, and whether Meta-Down trains with them.

    The bucket size is derived: q_bucket iterations use each image `uses_per_example` times, so a bucket holds
    q_bucket * batch_size / uses_per_example images. Identities are dealt to the nearest whole number of such buckets,
    evenly to one identity, by a shuffle that depends on the seed alone.

    Args:
        images: number of photos per identity; a photo trained at several resolutions counts once.
        q_bucket: iterations per bucket visit.
        q_warmup: first iterations of every visit, in which Meta-Down stands still.
        q_total: iterations in all; the last visit may be cut short.
        batch_size: samples per iteration.
        uses_per_example: how often a visit should use each image.
        seed: of the partition and of the order of buckets.

    Raises:
        UserError: numbers that cannot work together, naming the configuration key.
    """

    images: Mapping[str, int]
    q_bucket: int
    q_warmup: int
    q_total: int
    batch_size: int
    uses_per_example: float
    seed: int

    def __post_init__(self) -> None:
        for key in ("q_bucket", "q_total", "batch_size", "uses_per_example"):
            if getattr(self, key) <= 0:
                got = str(getattr(self, key))
                raise UserError("the schedule is empty", expected="more than 0", got=got, key=f"stage1.{key}")
        if not 0 <= self.q_warmup < self.q_bucket:
            raise UserError(
                "the warm-up leaves no iteration of a bucket for Meta-Down",
                expected=f"0 <= q_warmup < q_bucket = {self.q_bucket}",
                got=str(self.q_warmup),
                key="stage1.q_warmup",
            )
        if self.q_total <= self.q_warmup:
            raise UserError(
                "the run ends inside its first warm-up, so Meta-Down would never be trained",
                expected=f"q_total > q_warmup = {self.q_warmup}",
                got=str(self.q_total),
                key="stage1.q_total",
            )
        if not self.images:
            raise UserError(
                "there is nobody to train on", expected="at least one person", got="none", key="people.root"
            )
        empty = [identity for identity, count in self.images.items() if count < 1]
        if empty:
            got = ", ".join(empty)
            raise UserError("a person has no image", expected="at least one each", got=got, key="people.root")

    @property
    def wanted_images(self) -> float:
        """Images a bucket should hold so that q_bucket iterations use each one `uses_per_example` times."""
        return self.q_bucket * self.batch_size / self.uses_per_example

    @cached_property
    def buckets(self) -> tuple[tuple[str, ...], ...]:
        """The identities of every bucket: a partition that depends on the seed and the set of names alone."""
        names = sorted(self.images)
        shuffled = [names[k] for k in _permutation(len(names), "buckets", self.seed)]
        count = int(sum(self.images.values()) / self.wanted_images + 0.5)
        count = min(max(count, 1), len(names))
        edges = [len(names) * bucket // count for bucket in range(count + 1)]
        return tuple(tuple(shuffled[first:last]) for first, last in pairwise(edges))

    @property
    def slots(self) -> int:
        """N of Algorithm 1: identities in the largest bucket."""
        return max(len(bucket) for bucket in self.buckets)

    @property
    def visits(self) -> int:
        """Bucket visits until q_total; the last one may be cut short."""
        return -(-self.q_total // self.q_bucket)

    def visit(self, iteration: int) -> Visit:
        """Where `iteration` (0 <= iteration) stands."""
        index, position = divmod(iteration, self.q_bucket)
        pass_index, turn = divmod(index, len(self.buckets))
        return Visit(
            index=index,
            pass_index=pass_index,
            bucket=_permutation(len(self.buckets), "pass", self.seed, pass_index)[turn],
            start=index * self.q_bucket,
            position=position,
            warm_up=position < self.q_warmup,
        )

    def rows(self, *, slots: str) -> dict[str, int]:
        """The bank row of every identity: its slot in its bucket, or a row of its own when rows persist."""
        assert slots in SLOTS, slots
        if slots == "persist":
            return {identity: row for row, identity in enumerate(sorted(self.images))}
        return {identity: slot for bucket in self.buckets for slot, identity in enumerate(bucket)}

    def uses(self, bucket: int) -> float:
        """Mean number of times a full visit uses each image of `bucket`."""
        return self.q_bucket * self.batch_size / sum(self.images[identity] for identity in self.buckets[bucket])

    def note(self) -> str:
        """One line for the log: how the people fell into buckets, and what differs from what was asked."""
        sizes = sorted({len(bucket) for bucket in self.buckets})
        people = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        uses = sorted(self.uses(bucket) for bucket in range(len(self.buckets)))
        text = (
            f"{len(self.images)} people in {len(self.buckets)} bucket(s) of {people}, "
            f"{self.visits} visit(s), {self.visits / len(self.buckets):.2f} pass(es), "
            f"each image used {uses[0]:.1f} to {uses[-1]:.1f} times per visit"
        )
        if sum(self.images.values()) < self.wanted_images:
            text += f" (wanted {self.uses_per_example:g}: fewer images than one bucket's {self.wanted_images:.0f})"
        visited = {self.visit(start).bucket for start in range(0, self.q_total, self.q_bucket)}
        never = sum(len(people) for bucket, people in enumerate(self.buckets) if bucket not in visited)
        if never:
            text += f"; {never} people are never trained: q_total ends before their bucket"
        return text


@lru_cache(maxsize=64)
def _permutation(count: int, *key: int | str) -> tuple[int, ...]:
    return tuple(torch.randperm(count, generator=generator(*key)).tolist())
