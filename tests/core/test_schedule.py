"""Algorithm 1 as arithmetic: buckets, visits, warm-up and the exact end."""

import pytest

from metalora.core.errors import UserError
from metalora.core.schedule import BucketPlan


def plan(people: int = 40, photos: int = 20, **changes: object) -> BucketPlan:
    numbers: dict = {"q_bucket": 50, "q_warmup": 20, "q_total": 120, "batch_size": 4, "uses_per_example": 1, "seed": 3}
    return BucketPlan({f"p{k:02d}": photos for k in range(people)}, **(numbers | changes))


def test_the_papers_numbers_give_the_papers_buckets() -> None:
    paper = {"q_bucket": 2500, "q_warmup": 1000, "q_total": 50000, "batch_size": 4, "uses_per_example": 10}
    women, men = plan(1050, **paper), plan(400, **paper)
    assert {len(bucket) for bucket in women.buckets} == {50} and len(women.buckets) == 21
    assert {len(bucket) for bucket in men.buckets} == {50} and len(men.buckets) == 8
    assert women.visits == men.visits == 20
    assert women.uses(0) == 10
    assert "0.95 pass(es)" in women.note() and "2.50 pass(es)" in men.note()


def test_buckets_are_an_even_partition_that_depends_on_the_seed_alone() -> None:
    uneven = plan(43)  # 4.3 buckets' worth of people
    assert sorted(name for bucket in uneven.buckets for name in bucket) == sorted(uneven.images)
    assert [len(bucket) for bucket in uneven.buckets] == [10, 11, 11, 11]
    assert uneven.slots == 11
    shuffled = dict(reversed(uneven.images.items()))
    numbers = {"q_bucket": 50, "q_warmup": 20, "q_total": 120, "batch_size": 4, "uses_per_example": 1}
    assert BucketPlan(shuffled, **numbers, seed=3).buckets == uneven.buckets
    assert BucketPlan(shuffled, **numbers, seed=4).buckets != uneven.buckets


@pytest.mark.parametrize(("q_bucket", "q_warmup", "q_total"), [(50, 20, 120), (7, 0, 29), (5, 4, 5), (9, 3, 4)])
def test_visits_follow_one_another_and_end_exactly(q_bucket: int, q_warmup: int, q_total: int) -> None:
    schedule = plan(q_bucket=q_bucket, q_warmup=q_warmup, q_total=q_total, uses_per_example=q_bucket / 50)
    seen = [schedule.visit(iteration) for iteration in range(q_total)]
    for iteration, visit in enumerate(seen):
        assert visit.start + visit.position == iteration
        assert visit.position == iteration % q_bucket
        assert visit.warm_up == (visit.position < q_warmup)
        assert visit.pass_index == visit.index // len(schedule.buckets)
    assert seen[-1].index == schedule.visits - 1


def test_every_pass_visits_every_bucket_once_in_its_own_order() -> None:
    schedule = plan(q_bucket=10, q_warmup=4, q_total=2000, uses_per_example=0.2)
    buckets = len(schedule.buckets)
    assert buckets == 4
    orders = [tuple(schedule.visit((turn + buckets * lap) * 10).bucket for turn in range(buckets)) for lap in range(20)]
    assert all(sorted(order) == list(range(buckets)) for order in orders)
    assert len(set(orders)) > 5


def test_rows_are_slots_unless_identities_persist() -> None:
    schedule = plan(43)
    slots = schedule.rows(slots="reset")
    assert slots == schedule.rows(slots="reuse")
    for bucket in schedule.buckets:
        assert [slots[identity] for identity in bucket] == list(range(len(bucket)))
    assert sorted(schedule.rows(slots="persist").values()) == list(range(43))


def test_fewer_people_than_a_bucket_make_one_smaller_bucket_and_that_is_said() -> None:
    few = plan(3, photos=2)
    assert len(few.buckets) == 1 and few.slots == 3
    assert few.uses(0) == pytest.approx(200 / 6)
    assert "wanted 1" in few.note()
    assert "wanted" not in plan(40).note()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"q_warmup": 50}, "q_warmup"),
        ({"q_warmup": -1}, "q_warmup"),
        ({"q_total": 20}, "q_total"),
        ({"q_total": 0}, "q_total"),
        ({"q_bucket": 0}, "q_bucket"),
        ({"batch_size": 0}, "batch_size"),
        ({"uses_per_example": 0}, "uses_per_example"),
        ({"people": 0}, "people.root"),
        ({"photos": 0}, "people.root"),
    ],
)
def test_numbers_that_cannot_work_are_refused_by_name(changes: dict, key: str) -> None:
    with pytest.raises(UserError, match=key):
        plan(**changes)
