"""Orders are random, yet every model stands in every place equally often, for one participant and for all."""

from collections import Counter

import pytest

from metalora.reporting.user_study.design import CATEGORIES, PARTS
from metalora.reporting.user_study.orders import Showing, showings

QUESTIONS = {category: list(range(16 * k, 16 * k + 16)) for k, category in enumerate(CATEGORIES)}
SIZES = {"multi": 5, "single": 5, "recontextualized": 2, "stylized": 2}


def seen_by(participant: int, *, salt: str = "s", parts: bool = False) -> tuple[Showing, ...]:
    together = list(PARTS.values()) if parts else [CATEGORIES]
    return showings(QUESTIONS, sizes=SIZES, participant=participant, salt=salt, together=together)


def test_everybody_sees_every_question_once_and_every_model_in_it() -> None:
    for participant in range(30):
        shown = seen_by(participant)
        assert sorted(s.question for s in shown) == list(range(64))
        for s in shown:
            size = 5 if s.question < 32 else 2
            assert sorted(s.places) == list(range(size))


def test_over_25_participants_every_model_stands_in_every_place_of_a_question_equally_often() -> None:
    counts = Counter((s.question, place, m) for p in range(25) for s in seen_by(p) for place, m in enumerate(s.places))
    assert {counts[q, place, m] for q in range(32) for place in range(5) for m in range(5)} == {5}
    assert {counts[q, place, m] for q in range(32, 64) for place in range(2) for m in range(2)} == {12, 13}


def test_for_one_participant_every_model_stands_in_every_place_equally_often_up_to_one() -> None:
    for participant in range(25):
        shown = {s.question: s.places for s in seen_by(participant)}
        for category, questions in QUESTIONS.items():
            size = SIZES[category]
            counts = Counter((place, m) for q in questions for place, m in enumerate(shown[q]))
            found = [counts[place, m] for place in range(size) for m in range(size)]
            assert max(found) - min(found) <= 1
            assert size == 5 or set(found) == {8}


def test_orders_are_random_and_the_secret_decides_them() -> None:
    orders = {tuple(s.question for s in seen_by(p)) for p in range(25)}
    assert len(orders) == 25
    assert seen_by(3) == seen_by(3)
    assert seen_by(3) != seen_by(3, salt="another")
    firsts = Counter(seen_by(p)[0].question for p in range(400))
    assert max(firsts.values()) < 25  # 6.25 are expected; the chance of 25 is below 1e-7


def test_neighbours_change() -> None:
    """A model must not always stand right of the same other one."""
    pairs = Counter(
        (s.places[k], s.places[k + 1]) for p in range(25) for s in seen_by(p) if s.question < 32 for k in range(4)
    )
    expected = 25 * 32 * 4 / 20
    assert len(pairs) == 20 and all(0.5 * expected < n < 1.5 * expected for n in pairs.values())


@pytest.mark.parametrize("participant", range(5))
def test_parts_can_come_one_after_the_other(participant: int) -> None:
    numbers = [s.question for s in seen_by(participant, parts=True)]
    assert set(numbers[:32]) == set(range(32))
    assert numbers[:32] != sorted(numbers[:32])
