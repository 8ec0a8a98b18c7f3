"""Which people are whose when several processes train together."""

import pytest

from metalora.core.contracts import Sample
from metalora.core.errors import UserError
from metalora.core.schedule import BucketPlan
from metalora.people.share import Share

PLAN = BucketPlan(
    {f"p{k}": 6 for k in range(11)},
    q_bucket=8,
    q_warmup=3,
    q_total=24,
    batch_size=4,
    uses_per_example=8 * 4 / 24,
    seed=0,
)


def shares(world: int, slots: str) -> list[Share]:
    return [Share(PLAN, slots, rank=rank, world=world) for rank in range(world)]


@pytest.mark.parametrize("slots", ["reset", "reuse", "persist"])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_everybody_and_every_row_is_somebodys_and_nobody_elses(world: int, slots: str) -> None:
    everybody = shares(world, slots)
    assert sorted(len(bucket) for bucket in PLAN.buckets) == [3, 4, 4]
    rows = [row for share in everybody for row in share.rows_of(share.rank)]
    assert sorted(rows) == list(range(everybody[0].total)) and everybody[0].total == (11 if slots == "persist" else 4)
    assert all(
        share.rows_of(rank) == other.rows_of(rank) for share in everybody for rank, other in enumerate(everybody)
    )
    for bucket in PLAN.buckets:
        seated = [share.seated(bucket) for share in everybody]
        assert sorted(name for names in seated for name in names) == sorted(bucket)
        assert max(map(len, seated)) - min(map(len, seated)) <= 1


@pytest.mark.parametrize("slots", ["reset", "persist"])
def test_an_iterations_samples_are_split_by_owner_and_find_their_own_rows(slots: str) -> None:
    rows = PLAN.rows(slots=slots)
    for bucket in PLAN.buckets:
        chosen = [*bucket, bucket[0]]
        samples = [Sample(name, rows[name], 0, False, 5, chosen[:k].count(name)) for k, name in enumerate(chosen)]
        parts = [share.samples(samples) for share in shares(4, slots)]
        assert sorted((s.identity, s.occurrence) for part in parts for s in part) == sorted(
            (s.identity, s.occurrence) for s in samples
        )
        for share, part in zip(shares(4, slots), parts, strict=True):
            assert {sample.identity for sample in part} <= set(share.seated(bucket))
            for sample in part:
                assert share.rows_of(share.rank)[sample.row] == rows[sample.identity]
        assert shares(4, slots)[0].loads(samples) == [len(part) for part in parts] and max(map(len, parts)) == 2
    assert [len(share.samples(samples[:1])) for share in shares(4, slots)] == [1, 0, 0, 0]


def test_one_process_has_everything() -> None:
    (share,) = shares(1, "reset")
    samples = [Sample(name, row, 0, False, 0, 0) for row, name in enumerate(PLAN.buckets[0])]
    assert share.samples(samples) == tuple(samples)


def test_more_processes_than_people_of_a_bucket_are_refused() -> None:
    with pytest.raises(UserError, match=r"at most 4.*got 5.*trainer\.devices"):
        Share(PLAN, "reset", rank=0, world=5)
