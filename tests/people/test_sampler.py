"""What makes up iteration i: use counts, shapes, and what a sample may depend on."""

from collections import Counter
from collections.abc import Mapping

import pytest
import torch

from metalora.core.contracts import Sample, TrainingImage, TrainingPerson
from metalora.core.schedule import BucketPlan
from metalora.people.sampler import CohortSampler, IdentityBucketSampler, group_cohorts
from metalora.people.share import Share

SQUARE, TALL, WIDE = (64, 64), (88, 48), (48, 88)


def person(name: str, counts: Mapping[tuple[int, int], int]) -> TrainingPerson:
    images = [
        TrainingImage(torch.zeros(2, 1, 1, 1), shape, f"{name}-{shape}-{k}")
        for shape, count in counts.items()
        for k in range(count)
    ]
    return TrainingPerson(name, "a photo of a woman", tuple(images))


def bucket_sampler(
    people: list[TrainingPerson], *, slots: str = "reset", seed: int = 0, **numbers: float
) -> IdentityBucketSampler:
    plan = BucketPlan({one.identity: len(one.images) for one in people}, seed=seed, **numbers)  # type: ignore[arg-type]
    return IdentityBucketSampler(plan, people, slots=slots)


def visit_samples(sampler: IdentityBucketSampler, visit: int) -> list[tuple[Sample, ...]]:
    start = visit * sampler.plan.q_bucket
    return [sampler.samples(iteration) for iteration in range(start, start + sampler.plan.q_bucket)]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("people", "photos", "q_bucket", "batch_size"), [(20, 20, 50, 8), (21, 7, 13, 5), (6, 3, 40, 16), (9, 20, 10, 4)]
)
def test_every_image_and_every_identity_is_used_as_often_as_q_bucket_allows(
    people: int, photos: int, q_bucket: int, batch_size: int, seed: int
) -> None:
    sampler = bucket_sampler(
        [person(f"p{k}", {SQUARE: photos}) for k in range(people)],
        q_bucket=q_bucket,
        q_warmup=1,
        q_total=3 * q_bucket,
        batch_size=batch_size,
        uses_per_example=q_bucket * batch_size / (photos * 5),  # about five people per bucket
        seed=seed,
    )
    for visit in range(3):
        bucket = sampler.plan.buckets[sampler.plan.visit(visit * q_bucket).bucket]
        samples = [sample for batch in visit_samples(sampler, visit) for sample in batch]
        assert len(samples) == q_bucket * batch_size
        images = Counter({(identity, image): 0 for identity in bucket for image in range(photos)})
        images.update((sample.identity, sample.image) for sample in samples)
        identities = Counter(sample.identity for sample in samples)
        assert set(identities) == set(bucket)
        assert max(images.values()) - min(images.values()) <= 1
        assert max(identities.values()) - min(identities.values()) <= 1


def test_with_several_shapes_batches_are_homogeneous_and_use_stays_even_within_a_shape() -> None:
    people = [person(f"p{k}", {SQUARE: 8, TALL: 3 + k % 3, WIDE: 5}) for k in range(12)]
    sampler = bucket_sampler(people, q_bucket=60, q_warmup=20, q_total=60, batch_size=8, uses_per_example=3)
    by_name = {one.identity: one for one in people}
    batches = visit_samples(sampler, 0)
    uses = Counter({(one.identity, image): 0 for one in people for image in range(len(one.images))})
    shapes: Counter[tuple[int, int]] = Counter()
    for batch in batches:
        (shape,) = {by_name[sample.identity].images[sample.image].shape for sample in batch}
        shapes[shape] += 1
        uses.update((sample.identity, sample.image) for sample in batch)
    total = sum(len(one.images) for one in people)
    for shape in (SQUARE, TALL, WIDE):
        of_shape = [key for key in uses if by_name[key[0]].images[key[1]].shape == shape]
        assert abs(shapes[shape] - 60 * len(of_shape) / total) < 1  # whole batches, largest remainder
        counts = [uses[key] for key in of_shape]
        assert max(counts) - min(counts) <= 1
    identities: Counter[str] = Counter()
    for (identity, _), count in uses.items():
        identities[identity] += count
    for one in people:
        assert abs(identities[one.identity] - 480 * len(one.images) / total) < 2
    assert sampler.unused() == 0


def test_a_shape_too_rare_for_a_batch_is_counted() -> None:
    people = [person(f"p{k}", {SQUARE: 20} | ({TALL: 1} if k == 0 else {})) for k in range(10)]
    sampler = bucket_sampler(people, q_bucket=10, q_warmup=1, q_total=20, batch_size=4, uses_per_example=0.2)
    assert sampler.unused() == 1


def test_batches_mix_identities_and_uses_are_spread_over_the_visit() -> None:
    sampler = bucket_sampler(
        [person(f"p{k}", {SQUARE: 4}) for k in range(8)],
        q_bucket=64,
        q_warmup=24,
        q_total=64,
        batch_size=8,
        uses_per_example=16,
    )
    batches = visit_samples(sampler, 0)
    assert min(len({sample.identity for sample in batch}) for batch in batches) == 8  # as many as fit
    warm_up = Counter(sample.identity for batch in batches[:24] for sample in batch)
    assert set(warm_up.values()) == {24}
    assert len({tuple(sample.identity for sample in batch) for batch in batches}) > 32


def test_any_iteration_can_be_asked_for_in_any_order() -> None:
    def fresh() -> IdentityBucketSampler:
        people = [person(f"p{k}", {SQUARE: 5, WIDE: 2}) for k in range(9)]
        return bucket_sampler(people, q_bucket=10, q_warmup=4, q_total=35, batch_size=3, uses_per_example=1)

    forward = list(fresh().iterate())
    assert len(forward) == 35
    backward = [fresh().samples(iteration) for iteration in reversed(range(35))]
    assert forward == backward[::-1]
    assert list(fresh().iterate(17)) == forward[17:]


def test_rows_are_bucket_slots_or_rows_of_their_own() -> None:
    numbers = {"q_bucket": 10, "q_warmup": 4, "q_total": 40, "batch_size": 4, "uses_per_example": 2}
    people = [person(f"p{k}", {SQUARE: 5}) for k in range(16)]
    slots = bucket_sampler(people, **numbers)
    assert len(slots.plan.buckets) == 4
    assert {sample.row for batch in slots.iterate() for sample in batch} == {0, 1, 2, 3}
    persist = bucket_sampler(people, slots="persist", **numbers)
    assert {sample.row for batch in persist.iterate() for sample in batch} == set(range(16))


def test_occurrence_counts_the_samples_of_an_identity_before_it_in_the_batch() -> None:
    numbers = {"q_bucket": 6, "q_warmup": 2, "q_total": 6, "batch_size": 8, "uses_per_example": 4}
    sampler = bucket_sampler([person(f"p{k}", {SQUARE: 4}) for k in range(3)], **numbers)
    for batch in sampler.iterate():
        seen: Counter[str] = Counter()
        for sample in batch:
            assert sample.occurrence == seen[sample.identity]
            seen[sample.identity] += 1


def test_a_cohort_sees_what_single_runs_see() -> None:
    people = [person(f"p{k}", {SQUARE: 5, TALL: 2 + k, WIDE: 1}) for k in range(4)]
    cohort = CohortSampler(people, batch_size=2, seed=7)
    for one in people:
        alone = CohortSampler([one], batch_size=2, seed=7)
        for iteration in range(40):
            together = [sample for sample in cohort.samples(iteration) if sample.identity == one.identity]
            assert [(s.image, s.flip, s.iteration, s.occurrence) for s in together] == [
                (s.image, s.flip, s.iteration, s.occurrence) for s in alone.samples(iteration)
            ]
            assert {sample.row for sample in alone.samples(iteration)} == {0}


def test_a_cohort_batch_has_one_shape_and_every_person_batch_size_times() -> None:
    people = [person(f"p{k}", {SQUARE: 5, TALL: 2 + k, WIDE: 1}) for k in range(4)]
    sampler = CohortSampler(people, batch_size=3, seed=7)
    shapes = []
    for iteration in range(30):
        samples = sampler.samples(iteration)
        assert Counter(sample.identity for sample in samples) == {one.identity: 3 for one in people}
        (shape,) = {people[sample.row].images[sample.image].shape for sample in samples}
        shapes.append(shape)
    assert Counter(shapes) == {SQUARE: 10, TALL: 10, WIDE: 10}
    assert len({tuple(shapes[at : at + 3]) for at in range(0, 30, 3)}) > 2  # the order is drawn anew


def test_within_a_shape_a_person_uses_all_images_before_any_again_and_flips_half() -> None:
    people = [person("p0", {SQUARE: 5, TALL: 3})]
    sampler = CohortSampler(people, batch_size=2, seed=1)
    uses = Counter(sample.image for iteration in range(300) for sample in sampler.samples(iteration))
    assert {uses[image] for image in range(5)} == {60}
    assert {uses[image] for image in range(5, 8)} == {100}
    flips = sum(sample.flip for iteration in range(300) for sample in sampler.samples(iteration))
    assert 240 < flips < 360  # 600 fair coins: 300 +- 5 sigma
    assert sampler.samples(123) == CohortSampler(people, batch_size=2, seed=1).samples(123)
    assert any(sampler.samples(i) != CohortSampler(people, batch_size=2, seed=2).samples(i) for i in range(4))


def test_people_with_different_shapes_do_not_share_a_cohort() -> None:
    people = [person(f"p{k}", {SQUARE: 2, **({TALL: 1} if k % 3 == 0 else {})}) for k in range(7)]
    cohorts = group_cohorts(people, size=3)
    assert [[one.identity for one in cohort] for cohort in cohorts] == [["p0", "p3", "p6"], ["p1", "p2"], ["p4", "p5"]]
    with pytest.raises(AssertionError):
        CohortSampler(people, batch_size=1, seed=0)


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_a_balanced_batch_has_each_groups_share_and_uses_stay_even(processes: int) -> None:
    people = [person(f"p{k}", {SQUARE: 12, TALL: 8}) for k in range(50)]
    numbers = {"q_bucket": 60, "q_warmup": 20, "q_total": 60, "batch_size": 32, "uses_per_example": 1.92}
    sampler = bucket_sampler(people, **numbers)
    plain = visit_samples(sampler, 0)
    balanced = visit_samples(IdentityBucketSampler(sampler.plan, people, slots="reset", balance=8), 0)
    shares = [Share(sampler.plan, "reset", rank=rank, world=processes) for rank in range(processes)]
    for batch in balanced:
        parts = [share.samples(batch) for share in shares]
        for share, part in zip(shares, parts, strict=True):
            fair = 32 * len(share.rows_of(share.rank)) / 50
            assert abs(len(part) - fair) <= 2 * 8 / processes
    busiest = [sum(max(shares[0].loads(batch)) for batch in run) / len(run) for run in (plain, balanced)]
    assert busiest[1] < busiest[0] - 0.5 and busiest[1] <= 32 / processes + 1.5
    for run in (plain, balanced):
        uses = Counter((sample.identity, sample.image) for batch in run for sample in batch)
        assert len(uses) == 50 * 20 and max(uses.values()) - min(uses.values()) <= 1
