"""In which order a participant sees questions and models: at random, and every model in every place equally often."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Showing:
    """One question as one participant sees it: which question, and which candidate (by number) in which place."""

    question: int
    places: tuple[int, ...]


def latin_square(size: int, rng: random.Random) -> list[tuple[int, ...]]:
    """Rows in which every number from 0 to `size` - 1 stands once in every place; rows, places and numbers shuffled."""
    rows, columns, symbols = (rng.sample(range(size), size) for _ in range(3))
    return [tuple(symbols[(row + column) % size] for column in columns) for row in rows]


def showings(
    categories: Mapping[str, Sequence[int]],
    *,
    sizes: Mapping[str, int],
    participant: int,
    salt: str,
    together: Sequence[Sequence[str]],
) -> tuple[Showing, ...]:
    """What participant number `participant` sees, first to last.

    Of each run of N questions of a category (N models) a participant sees every model in every place once, and N
    participants in a row see every model in every place of a question once.

    Args:
        categories: the numbers of each category's questions.
        sizes: how many models each category compares.
        salt: a secret; who knows it can tell the models apart.
        together: categories whose questions are mixed; one such group comes after the other.
    """
    shown: dict[str, list[Showing]] = {category: [] for category in categories}
    for category, questions in categories.items():
        size = sizes[category]
        for number, question in enumerate(questions):
            rng = random.Random(f"{salt} {category} {participant // size} {number // size}")
            row = latin_square(size, rng)[(number + participant) % size]
            shown[category].append(Showing(question, row))
    rng = random.Random(f"{salt} order {participant}")
    ordered: list[Showing] = []
    for group in together:
        mixed = [showing for category in group for showing in shown.get(category, [])]
        rng.shuffle(mixed)
        ordered += mixed
    return tuple(ordered)
