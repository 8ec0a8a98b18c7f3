"""Which questions a study asks (App. C): drawn equally over people, classes and prompts, from what all models have."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from metalora.core.errors import UserError
from metalora.people.benchmark import Subject
from metalora.reporting.user_study.pool import Pool

CATEGORIES = ("multi", "single", "recontextualized", "stylized")
PARTS = {1: ("multi", "single"), 2: ("recontextualized", "stylized")}
"""Part 1 asks for the best image, part 2 for the better set."""
QUESTION = {
    1: "Taking the person and the text prompt together, which picture is the best result?",
    2: "Taking variety and closeness to the prompt together, which set of pictures is the better one?",
}
"""What participants are asked: the questions of the paper in other words."""


def part_of(category: str) -> int:
    """1 or 2."""
    return next(part for part, categories in PARTS.items() if category in categories)


@dataclass(frozen=True)
class Design:
    """What a study is made of.

    Args:
        models: who is compared in part 1, two or more.
        pair: who is compared in part 2.
        counts: category and part of the benchmark (unsplash, ffhq) to a number of questions.
        prompt_ids: category to the ids of the prompts it may use.
        references: unseen photos shown in a multi-reference question.
        set_size: seeds of a set in part 2.
        seed: of every draw.
    """

    models: tuple[str, ...]
    pair: tuple[str, str]
    counts: Mapping[str, Mapping[str, int]]
    prompt_ids: Mapping[str, frozenset[str]]
    references: int = 3
    set_size: int = 3
    seed: int = 0

    def methods(self, category: str) -> tuple[str, ...]:
        """Who is compared in a category."""
        return self.models if part_of(category) == 1 else self.pair

    def seeds_each(self, category: str) -> int:
        """Images of a model that one question shows."""
        return 1 if part_of(category) == 1 else self.set_size


@dataclass(frozen=True)
class Question:
    """One question: reference photos, a prompt, and of every model in turn the files it shows."""

    category: str
    part: str
    identity: str
    class_noun: str
    prompt_id: str
    prompt: str
    seeds: tuple[int, ...]
    references: tuple[Path, ...]
    candidates: Mapping[str, tuple[Path, ...]]


@dataclass(frozen=True)
class _Option:
    subject: Subject
    prompt_id: str
    seeds: tuple[int, ...]


def draw_questions(design: Design, *, pool: Pool, subjects: Sequence[Subject]) -> tuple[Question, ...]:
    """Draw the questions: within a category and a part every class, person and prompt as equally often as can be.

    No person meets a prompt twice in a study, so no picture is judged twice.

    Raises:
        UserError: a model without images, or fewer fitting images than questions.
    """
    for method in dict.fromkeys((*design.models, *design.pair)):
        if method not in pool.methods and any(
            sum(n.values()) and method in design.methods(c) for c, n in design.counts.items()
        ):
            raise UserError(
                f"there are no images of {method}",
                expected="images of every model",
                got="; ".join([", ".join(pool.methods), *(f"left out: {x}" for x in pool.left_out.get(method, ()))]),
                key="images, models, pair",
            )
    used: set[tuple[str, str]] = set()
    seen: Counter[str] = Counter()
    questions: list[Question] = []
    for category in CATEGORIES:
        for part, count in design.counts.get(category, {}).items():
            rng = random.Random(f"{design.seed} {category} {part}")
            options = [
                o
                for o in _options(design, category, part, pool=pool, subjects=subjects)
                if (o.subject.identity, o.prompt_id) not in used
            ]
            if len(options) < count:
                raise _too_few(design, category, part, count=count, found=len(options), pool=pool, subjects=subjects)
            for option in _spread(options, count=count, seen=seen, rng=rng):
                used.add((option.subject.identity, option.prompt_id))
                seen[option.subject.identity] += 1
                questions.append(_question(design, category, option, pool=pool, rng=rng))
    return tuple(questions)


def _options(design: Design, category: str, part: str, *, pool: Pool, subjects: Sequence[Subject]) -> list[_Option]:
    """Every person and prompt of which all models have enough seeds in common."""
    found: list[_Option] = []
    for subject in subjects:
        if subject.part != part or (category == "multi" and len(subject.test_photos) < design.references):
            continue
        for prompt_id in sorted(design.prompt_ids[category]):
            cells = [pool.seeds(method, subject.identity, prompt_id) for method in design.methods(category)]
            common = frozenset.intersection(*cells)
            if len(common) >= design.seeds_each(category):
                found.append(_Option(subject, prompt_id, tuple(sorted(common))))
    return found


def _spread(options: Sequence[_Option], *, count: int, seen: Counter[str], rng: random.Random) -> list[_Option]:
    """`count` options, one after another the one whose class, person and prompt came least often so far."""
    left, chosen = list(options), []
    classes, people, prompts = Counter[str](), Counter[str](), Counter[str]()
    rng.shuffle(left)
    for _ in range(count):
        best = min(
            left,
            key=lambda o: (
                classes[o.subject.class_noun],
                people[o.subject.identity],
                seen[o.subject.identity],
                prompts[o.prompt_id],
            ),
        )
        left.remove(best)
        chosen.append(best)
        classes[best.subject.class_noun] += 1
        people[best.subject.identity] += 1
        prompts[best.prompt_id] += 1
    return chosen


def _question(design: Design, category: str, option: _Option, *, pool: Pool, rng: random.Random) -> Question:
    subject, prompt_id = option.subject, option.prompt_id
    seeds = tuple(rng.sample(option.seeds, design.seeds_each(category)))
    unseen = category == "multi"
    photos = tuple(rng.sample(subject.test_photos, design.references)) if unseen else (subject.reference,)
    return Question(
        category=category,
        part=subject.part,
        identity=subject.identity,
        class_noun=subject.class_noun,
        prompt_id=prompt_id,
        prompt=pool.prompts[subject.identity, prompt_id],
        seeds=seeds,
        references=photos,
        candidates={
            method: tuple(pool.files[method, subject.identity, prompt_id, seed] for seed in seeds)
            for method in design.methods(category)
        },
    )


def _too_few(
    design: Design, category: str, part: str, *, count: int, found: int, pool: Pool, subjects: Sequence[Subject]
) -> UserError:
    """Says which model has how much, so that the gap can be filled."""
    people = [s for s in subjects if s.part == part]
    told = []
    for method in design.methods(category):
        most = [
            len(pool.seeds(method, s.identity, prompt_id)) for s in people for prompt_id in design.prompt_ids[category]
        ]
        drawn = sum(n > 0 for n in most)
        told.append(f"{method} {drawn} with up to {max(most, default=0)} seeds")
    photos = f", and {design.references} photos beside the training photo" if category == "multi" else ""
    need = "one seed" if design.seeds_each(category) == 1 else f"{design.seeds_each(category)} seeds"
    return UserError(
        f"too few images for {count} {category} questions of the {part} people",
        expected=f"{count} pairs of person and prompt of which {' and '.join(design.methods(category))} have {need} in "
        f"common{photos}",
        got=f"{found} not asked about yet ({len(people)} people; pairs drawn: {', '.join(told)})",
        key=f"images, questions.{category}.{part}",
    )
