"""Tables 1 and 2 from a study's answers: shares, intervals clustered by participant, paired tests.

Every participant who finished answered every question once, so a category is a full matrix of choices.
Shape legend: P participants, Q questions, M models, S bootstrap resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist

import numpy as np

from metalora.core.errors import UserError
from metalora.core.metrics import reach, resample_weights
from metalora.reporting.user_study.design import CATEGORIES, PARTS
from metalora.reporting.user_study.significance import holm, sign_flip_p
from metalora.reporting.user_study.store import Store

OVERALL = "overall"


@dataclass(frozen=True)
class Choices:
    """Who was chosen in a category: model numbers [P, Q] into `models`."""

    models: tuple[str, ...]
    chosen_PQ: np.ndarray

    @property
    def wins(self) -> np.ndarray:
        """1 where a model was chosen, [P, Q, M]."""
        return (self.chosen_PQ[:, :, None] == np.arange(len(self.models))).astype(np.float64)


@dataclass(frozen=True)
class Answers:
    """What the finished participants of one kind chose, by category; those who have not finished are only counted."""

    kind: str
    participants: int
    unfinished: int
    choices: Mapping[str, Choices]


@dataclass(frozen=True)
class Share:
    """A model's percent of the answers, with 95% intervals: over participants, and over participants and questions."""

    model: str
    column: str
    percent: float
    low: float
    high: float
    low_both: float
    high_both: float
    answers: int


@dataclass(frozen=True)
class Comparison:
    """a minus b in points, its 95% interval over participants, and the exact p before and after Holm's correction."""

    a: str
    b: str
    column: str
    points: float
    low: float
    high: float
    p: float
    p_holm: float


@dataclass(frozen=True)
class Analysis:
    """One part of a study: shares by column (overall first), comparisons of `ours` with all others, shifts.

    There are no comparisons where `ours` was not in the part.
    """

    part: int
    ours: str
    participants: int
    questions: Mapping[str, int]
    shares: tuple[Share, ...]
    comparisons: tuple[Comparison, ...]
    shifts: tuple[Comparison, ...]


def read_answers(store: Store, *, kind: str) -> Answers:
    """The answers of one kind of participants (person, trial or simulated), only of those who answered every question.

    Raises:
        UserError: nobody of that kind has finished.
    """
    settings = store.settings
    with store.connect() as connection:
        rows = connection.execute(
            "SELECT id, (SELECT COUNT(*) FROM answer WHERE participant = who.id), "
            "(SELECT COUNT(*) FROM showing WHERE participant = who.id) "
            "FROM participant AS who WHERE kind = ? ORDER BY id",
            (kind,),
        ).fetchall()
        finished = [number for number, answered, total in rows if answered == total]
        unfinished = sum(0 < answered < total for _, answered, total in rows)
        others = dict(
            connection.execute(
                "SELECT kind, COUNT(DISTINCT participant) FROM answer JOIN participant AS who ON who.id = participant "
                "GROUP BY kind"
            )
        )
        if not finished:
            got = ", ".join(f"{count} {name}" for name, count in others.items()) or "no answers at all"
            raise UserError(
                f"nobody ({kind}) has answered every question",
                expected="a finished participant; simulated=true for simulated ones",
                got=f"participants with answers: {got}; {unfinished} unfinished",
                key="study, simulated",
            )
        chosen = {
            (participant, question): method
            for participant, question, method in connection.execute("SELECT participant, question, method FROM answer")
        }
        questions = connection.execute("SELECT id, category FROM question ORDER BY id").fetchall()
    choices: dict[str, Choices] = {}
    for category in CATEGORIES:
        asked = [number for number, of in questions if of == category]
        if asked:
            models = tuple(settings["models"] if category in PARTS[1] else settings["pair"])
            table = [[models.index(chosen[person, question]) for question in asked] for person in finished]
            choices[category] = Choices(models, np.array(table))
    return Answers(kind, len(finished), unfinished, choices)


def asked_about(choices: Mapping[str, Choices]) -> tuple[str, ...]:
    """The models that there were questions about."""
    return tuple(dict.fromkeys(model for one in choices.values() for model in one.models))


def analyse(
    choices: Mapping[str, Choices], *, part: int, ours: str, resamples: int = 10_000, seed: int = 0
) -> Analysis | None:
    """Shares, intervals and tests of one part; None when it has no questions.

    "Overall" is the average of the columns, as in the paper. Intervals over participants resample whole participants
    with all their answers (BCa, widened for few participants); the second interval resamples questions too (Owen's
    pigeonhole bootstrap), for what would hold on other questions.

    Args:
        choices: of all parts.
        ours: the model that every other is tested against.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        UserError: `ours` was in no part.
    """
    if ours not in (asked := asked_about(choices)):
        raise UserError(
            "the model to test others against was not in the study",
            expected=", ".join(asked),
            got=str(ours),
            key="ours",
        )
    columns = {c: choices[c] for c in PARTS[part] if c in choices}
    if not columns:
        return None
    models = next(iter(columns.values())).models
    participants = len(next(iter(columns.values())).chosen_PQ)
    per_person = {c: one.wins.mean(axis=1) for c, one in columns.items()}  # [P, M]
    per_person = {OVERALL: np.mean(list(per_person.values()), axis=0)} | per_person
    people_SP = resample_weights(participants, resamples=resamples, seed=seed)
    resampled = {c: people_SP @ shares_PM for c, shares_PM in per_person.items()}  # [S, M]
    both = _both(columns, people_SP, seed=seed)
    shares = [
        Share(
            model,
            column,
            100 * float(shares_PM[:, m].mean()),
            *_interval(shares_PM[:, m], resampled[column][:, m]),
            *_interval_of_both(both[column][:, m], participants),
            int(sum(one.wins[..., m].sum() for c, one in columns.items() if column in (c, OVERALL))),
        )
        for column, shares_PM in per_person.items()
        for m, model in enumerate(models)
    ]
    exact = _exact(columns)
    return Analysis(
        part,
        ours,
        participants,
        {c: one.chosen_PQ.shape[1] for c, one in columns.items()},
        tuple(shares),
        _against(ours, models, per_person, resampled, exact),
        _shifts(columns, models, per_person, resampled, exact),
    )


def _both(columns: Mapping[str, Choices], people_SP: np.ndarray, *, seed: int) -> dict[str, np.ndarray]:
    """Shares when participants and questions are both drawn again, [S, M] per column."""
    found: dict[str, np.ndarray] = {}
    for k, (category, one) in enumerate(columns.items()):
        questions_SQ = resample_weights(one.chosen_PQ.shape[1], resamples=len(people_SP), seed=seed + 1 + k)
        wins_PQM = one.wins
        found[category] = np.stack(
            [((people_SP @ wins_PQM[..., m]) * questions_SQ).sum(axis=1) for m in range(wins_PQM.shape[2])], axis=1
        )
    return {OVERALL: np.mean(list(found.values()), axis=0)} | found


def _interval(values_P: np.ndarray, resampled_S: np.ndarray) -> tuple[float, float]:
    """95% BCa interval (Efron 1987) of a mean over participants, in percent; NaN for one participant.

    How often it holds the truth: `python -m experiments.user_study.coverage`.
    """
    count = len(values_P)
    if count < 2:
        return float("nan"), float("nan")
    mean = values_P.mean()
    below = ((resampled_S < mean).mean() + (resampled_S <= mean).mean()) / 2
    shift = NormalDist().inv_cdf(float(np.clip(below, 1e-3, 1 - 1e-3)))
    influence_P = (values_P - mean) / (count - 1)  # of the jackknife
    spread = float((influence_P**2).sum()) ** 1.5
    skew = float((influence_P**3).sum()) / (6 * spread) if spread > 0 else 0.0
    ends = (shift + sign * reach(count) for sign in (-1, 1))
    return _ends(resampled_S, *(shift + end / (1 - skew * end) for end in ends))


def _interval_of_both(resampled_S: np.ndarray, participants: int) -> tuple[float, float]:
    """95% percentile interval, in percent."""
    if participants < 2:
        return float("nan"), float("nan")
    return _ends(resampled_S, -reach(participants), reach(participants))


def _ends(resampled_S: np.ndarray, *normal: float) -> tuple[float, float]:
    low, high = np.quantile(resampled_S, [NormalDist().cdf(end) for end in normal])
    return 100 * float(low), 100 * float(high)


def _exact(columns: Mapping[str, Choices]) -> dict[str, list[list[Fraction]]]:
    """Each participant's share of each model as exact fractions, for tests that count ties as ties."""
    found = {
        c: [[Fraction(int(n), one.chosen_PQ.shape[1]) for n in row] for row in one.wins.sum(axis=1)]
        for c, one in columns.items()
    }
    rows = zip(*found.values(), strict=True)
    mean = [[sum(cells, Fraction()) / len(found) for cells in zip(*of_one, strict=True)] for of_one in rows]
    return {OVERALL: mean} | found


def _against(
    ours: str,
    models: Sequence[str],
    per_person: Mapping[str, np.ndarray],
    resampled: Mapping[str, np.ndarray],
    exact: Mapping[str, list[list[Fraction]]],
) -> tuple[Comparison, ...]:
    """One model against every other in every column, corrected over all of them; nothing where it was not."""
    if ours not in models:
        return ()
    a = models.index(ours)
    found = [
        (
            (ours, other, column),
            100 * float((shares_PM[:, a] - shares_PM[:, b]).mean()),
            _interval(shares_PM[:, a] - shares_PM[:, b], resampled[column][:, a] - resampled[column][:, b]),
            sign_flip_p([row[a] - row[b] for row in exact[column]]),
        )
        for column, shares_PM in per_person.items()
        for b, other in enumerate(models)
        if b != a
    ]
    return _corrected(found)


def _shifts(
    columns: Mapping[str, Choices],
    models: Sequence[str],
    per_person: Mapping[str, np.ndarray],
    resampled: Mapping[str, np.ndarray],
    exact: Mapping[str, list[list[Fraction]]],
) -> tuple[Comparison, ...]:
    """Of every model its share in the second column minus that in the first: what one reference photo flatters."""
    if len(columns) < 2:
        return ()
    first, second = columns
    found = [
        (
            (second, first, model),
            100 * float((per_person[second][:, m] - per_person[first][:, m]).mean()),
            _interval(
                per_person[second][:, m] - per_person[first][:, m], resampled[second][:, m] - resampled[first][:, m]
            ),
            sign_flip_p([y[m] - x[m] for x, y in zip(exact[first], exact[second], strict=True)]),
        )
        for m, model in enumerate(models)
    ]
    return _corrected(found if len(models) > 2 else found[:1])  # of two models one shift is the other's negative


def _corrected(
    found: Sequence[tuple[tuple[str, str, str], float, tuple[float, float], float]],
) -> tuple[Comparison, ...]:
    adjusted = holm([p for *_, p in found])
    return tuple(
        Comparison(*names, points, *interval, p, corrected)
        for (names, points, interval, p), corrected in zip(found, adjusted, strict=True)
    )
