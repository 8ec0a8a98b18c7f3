"""Which samples make up iteration i. Pure functions of (seed, i): nothing is counted along the way, so a resumed run
and a longer run see the same batches.

All samples of a batch have one shape.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Protocol, TypeVar

import torch

from metalora.core.contracts import Sample, TrainingPerson
from metalora.core.noise import generator
from metalora.core.schedule import BucketPlan

Shape = tuple[int, int]
Key = TypeVar("Key")


class Sampler(Protocol):
    """What a data module needs: the samples of any iteration."""

    def samples(self, iteration: int) -> tuple[Sample, ...]:
        """The samples of one iteration, all of one shape."""
        ...


class IdentityBucketSampler:
    """Stage 1: batches that mix the identities of the current bucket and use every image equally often.

    Within a visit whole batches are dealt to shapes in proportion to their images (largest remainder); within a shape
    the use counts of any two images differ by one at most, and each identity gets its share to one. Uses are spread
    evenly over the visit, warm-up included.

    Args:
        plan: the schedule.
        people: all identities of the plan.
        slots: decides the bank rows (see `BucketPlan.rows`).
        balance: a number of processes (or a multiple of it) that every batch keeps about equally busy: the bucket's
            people form as many groups (slot modulo `balance`), and a batch has each group's share of samples to within
            two. Who meets in a batch changes with it, how often an image is used does not.
    """

    def __init__(self, plan: BucketPlan, people: Sequence[TrainingPerson], *, slots: str, balance: int = 1) -> None:
        self.plan, self.balance = plan, balance
        self._rows = plan.rows(slots=slots)
        self._people = {person.identity: person for person in people}
        assert set(self._people) == set(plan.images)
        self._visit = -1
        self._batches: list[list[tuple[str, int]]] = []

    def samples(self, iteration: int) -> tuple[Sample, ...]:
        """The samples of one iteration, all of one shape; `plan.batch_size` of them."""
        visit = self.plan.visit(iteration)
        if visit.index != self._visit:
            self._batches = self._plan_visit(visit.index, self.plan.buckets[visit.bucket])
            self._visit = visit.index
        return _samples(self._batches[visit.position], iteration=iteration, rows=self._rows, seed=self.plan.seed)

    def iterate(self, start: int = 0) -> Iterator[tuple[Sample, ...]]:
        """Batches from iteration `start` to q_total."""
        return (self.samples(iteration) for iteration in range(start, self.plan.q_total))

    def unused(self) -> int:
        """How many images no full visit uses, because their shape is too rare for a batch of its own."""
        count = 0
        for bucket in self.plan.buckets:
            sizes = {shape: sum(map(len, members.values())) for shape, members in self._by_shape(bucket).items()}
            quota = _largest_remainder(sizes, self.plan.q_bucket)
            count += sum(size for shape, size in sizes.items() if not quota[shape])
        return count

    def _by_shape(self, bucket: Sequence[str]) -> dict[Shape, dict[str, list[int]]]:
        shapes: dict[Shape, dict[str, list[int]]] = {}
        for identity in bucket:
            for index, image in enumerate(self._people[identity].images):
                shapes.setdefault(image.shape, {}).setdefault(identity, []).append(index)
        return {shape: shapes[shape] for shape in sorted(shapes)}

    def _plan_visit(self, visit: int, bucket: Sequence[str]) -> list[list[tuple[str, int]]]:
        draw = generator("visit", self.plan.seed, visit)
        by_shape = self._by_shape(bucket)
        sizes = {shape: sum(map(len, members.values())) for shape, members in by_shape.items()}
        quota = _largest_remainder(sizes, self.plan.q_bucket)
        owed = dict.fromkeys(bucket, 0.0)
        streams: dict[Shape, list[tuple[str, int]]] = {}
        for shape, members in by_shape.items():
            total = quota[shape] * self.plan.batch_size
            counts = _shares({identity: len(images) for identity, images in members.items()}, total, owed, draw)
            uses = {identity: iter(_cycle(members[identity], count, draw)) for identity, count in counts.items()}
            group = {identity: slot % self.balance for slot, identity in enumerate(bucket)}
            order = _spread(counts, draw) if self.balance == 1 else _dealt(counts, group, draw)
            streams[shape] = [(identity, next(uses[identity])) for identity in order]
        size = self.plan.batch_size
        batches = []
        for shape in _spread(quota, draw):
            batches.append(streams[shape][:size])
            del streams[shape][:size]
        return batches


class CohortSampler:
    """Stage 2: every iteration has every identity of the cohort `batch_size` times.

    The shape is drawn from (seed, iteration) alone, each shape once in as many iterations as there are shapes;
    image and flip from (seed, identity, iteration, occurrence) alone. So a cohort sees what single runs see.

    Args:
        people: identities with the same set of shapes; see `group_cohorts`. Row k of the bank is person k.
        batch_size: samples per identity and iteration.
        seed: of every draw.
        flips: whether half of the samples are mirrored; a part of App. D's augmentation.
    """

    def __init__(self, people: Sequence[TrainingPerson], *, batch_size: int, seed: int, flips: bool = True) -> None:
        assert len({_shapes(person) for person in people}) == 1, "a cohort has one set of shapes"
        assert batch_size >= 1
        self._shapes = _shapes(people[0])
        self._batch_size, self._seed, self._flips = batch_size, seed, flips
        self._rows = {person.identity: row for row, person in enumerate(people)}
        self._images = {
            person.identity: {
                shape: [index for index, image in enumerate(person.images) if image.shape == shape]
                for shape in self._shapes
            }
            for person in people
        }

    def samples(self, iteration: int) -> tuple[Sample, ...]:
        """The samples of one iteration: identity by identity, `batch_size` of each, all of one shape."""
        block, turn = divmod(iteration, len(self._shapes))
        shape = self._shapes[_permutation(len(self._shapes), "shape", self._seed, block)[turn]]
        chosen = [
            (identity, self._image(identity, shape, block * self._batch_size + occurrence))
            for identity in self._rows
            for occurrence in range(self._batch_size)
        ]
        return _samples(chosen, iteration=iteration, rows=self._rows, seed=self._seed, flips=self._flips)

    def _image(self, identity: str, shape: Shape, use: int) -> int:
        """The image of an identity's `use`-th sample of this shape: all its images before any one again."""
        images = self._images[identity][shape]
        cycle, position = divmod(use, len(images))
        return images[_permutation(len(images), "image", self._seed, identity, *shape, cycle)[position]]


def group_cohorts(people: Sequence[TrainingPerson], *, size: int) -> list[tuple[TrainingPerson, ...]]:
    """Split people into cohorts of at most `size` that can train in one batch: same set of shapes, order kept.

    The cohorts of a set of shapes are as equal as can be: 17 people at size 16 are 8 and 9, not 16 and one alone.
    """
    assert size >= 1
    groups: dict[tuple[Shape, ...], list[TrainingPerson]] = {}
    for person in people:
        groups.setdefault(_shapes(person), []).append(person)
    cohorts = []
    for group in groups.values():
        count = -(-len(group) // size)
        edges = [len(group) * number // count for number in range(count + 1)]
        cohorts += [tuple(group[first:last]) for first, last in pairwise(edges)]
    return cohorts


def _shapes(person: TrainingPerson) -> tuple[Shape, ...]:
    return tuple(sorted({image.shape for image in person.images}))


def _samples(
    chosen: Sequence[tuple[str, int]], *, iteration: int, rows: Mapping[str, int], seed: int, flips: bool = True
) -> tuple[Sample, ...]:
    seen: dict[str, int] = {}
    samples = []
    for identity, image in chosen:
        occurrence = seen.get(identity, 0)
        seen[identity] = occurrence + 1
        flip = flips and bool(torch.randint(2, (), generator=generator("flip", seed, identity, iteration, occurrence)))
        samples.append(Sample(identity, rows[identity], image, flip, iteration, occurrence))
    return tuple(samples)


def _permutation(count: int, *key: int | str) -> list[int]:
    return torch.randperm(count, generator=generator(*key)).tolist()


def _largest_remainder(sizes: Mapping[Key, int], total: int) -> dict[Key, int]:
    """Whole shares of `total` in proportion to `sizes`, each off by less than one; ties go to the first."""
    everything = sum(sizes.values())
    shares = {key: total * size // everything for key, size in sizes.items()}
    remainder = {key: total * size % everything for key, size in sizes.items()}
    for key in sorted(sizes, key=lambda key: -remainder[key])[: total - sum(shares.values())]:
        shares[key] += 1
    return shares


def _shares(sizes: Mapping[str, int], total: int, owed: dict[str, float], draw: torch.Generator) -> dict[str, int]:
    """Like `_largest_remainder`, but what is left over goes to whom earlier shapes owe most; ties by lot."""
    everything = sum(sizes.values())
    shares = {identity: total * size // everything for identity, size in sizes.items()}
    for identity, size in sizes.items():
        owed[identity] += total * size / everything - shares[identity]
    lot = torch.randperm(len(sizes), generator=draw).tolist()
    ranked = sorted(zip(sizes, lot, strict=True), key=lambda item: (-round(owed[item[0]], 9), item[1]))
    for identity, _ in ranked[: total - sum(shares.values())]:
        shares[identity] += 1
        owed[identity] -= 1
    return shares


def _cycle(images: Sequence[int], count: int, draw: torch.Generator) -> list[int]:
    """`count` uses of `images`, all before any one again, each round in an order of its own."""
    uses: list[int] = []
    while len(uses) < count:
        uses += [images[k] for k in torch.randperm(len(images), generator=draw).tolist()]
    return uses[:count]


def _spread(counts: Mapping[Key, int], draw: torch.Generator) -> list[Key]:
    """Every key as often as its count, spread evenly: the j-th of n uses lies at a random point of [j/n, (j+1)/n)."""
    keys = [key for key, count in counts.items() for _ in range(count)]
    start = torch.cat([torch.arange(count) for count in counts.values()])
    width = torch.cat([torch.full((count,), float(count)) for count in counts.values()])
    at = (start + torch.rand(len(keys), generator=draw, dtype=torch.float64)) / width
    return [keys[k] for k in torch.argsort(at, stable=True).tolist()]


def _dealt(counts: Mapping[str, int], group: Mapping[str, int], draw: torch.Generator) -> list[str]:
    """Like `_spread`, but groups take turns as evenly as can be: the j-th of a group's n uses stands at (j + 1/2)/n."""
    groups = {
        number: {key: count for key, count in counts.items() if group[key] == number} for number in group.values()
    }
    orders = {number: _spread(members, draw) for number, members in sorted(groups.items()) if sum(members.values())}
    turns = sorted(
        ((place + 0.5) / len(order), number) for number, order in orders.items() for place in range(len(order))
    )
    queues = {number: iter(order) for number, order in orders.items()}
    return [next(queues[number]) for _, number in turns]
