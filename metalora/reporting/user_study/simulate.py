"""Simulated participants: they choose by known probabilities, are marked as simulated for good, and test the analysis.

Shape legend: P participants, Q questions, M models.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from metalora.core.errors import UserError
from metalora.reporting.user_study import answering
from metalora.reporting.user_study.design import CATEGORIES, PARTS
from metalora.reporting.user_study.store import Store


def draw_choices(
    shares_M: np.ndarray, *, participants: int, questions: int, spread: float, rng: np.random.Generator
) -> np.ndarray:
    """Choices [P, Q]: every participant has probabilities of their own, Dirichlet(spread * shares) around the shares.

    Args:
        shares_M: expected share of each model; adds up to 1.
        spread: how alike participants are; the larger, the more.
    """
    own_PM = (own_shares(shares_M, spread=spread, rng=rng) for _ in range(participants))
    return np.stack([rng.choice(len(shares_M), size=questions, p=own_M) for own_M in own_PM])


def own_shares(shares_M: np.ndarray, *, spread: float, rng: np.random.Generator) -> np.ndarray:
    """One simulated participant's probabilities, [M]; what has no share is never chosen."""
    positive = shares_M > 0
    own_M = np.zeros(len(shares_M))
    own_M[positive] = rng.dirichlet(spread * shares_M[positive])
    return own_M


def simulate(
    store: Store, *, participants: int, preferences: Mapping[str, Any] | None, spread: float, seed: int
) -> None:
    """Add participants of kind "simulated" who agree and answer everything, each answer as a person's would be stored.

    Args:
        preferences: model to its share, or category to such a mapping; shares are scaled to 1 over the models that a
            category compares. None: all alike.

    Raises:
        UserError: a model or category that no question is about, or shares that say nothing about one that is.
    """
    settings = store.settings
    with store.connect() as connection:
        asked = {row[0] for row in connection.execute("SELECT DISTINCT category FROM question")}
    models = {c: settings["models"] if c in PARTS[1] else settings["pair"] for c in CATEGORIES if c in asked}
    given = _by_category(preferences, models)
    shares = {category: _shares(given[category], category, models[category]) for category in models}
    if type(spread) not in (int, float) or not 0 < spread < float("inf") or participants < 1:
        raise UserError(
            "nothing to simulate",
            expected="spread above 0, participants of 1 or more",
            got=f"{spread}, {participants}",
            key="spread, participants",
        )
    for invitation in store.invite(participants, kind="simulated"):
        rng = np.random.default_rng([seed, invitation.participant])
        person = answering.find(store, invitation.token)
        assert person is not None
        answering.consent(store, person)
        person = answering.find(store, invitation.token)
        assert person is not None
        with store.connect() as connection:
            shown = connection.execute(
                "SELECT category, places FROM showing JOIN question ON question.id = question "
                "WHERE participant = ? ORDER BY position",
                (person.number,),
            ).fetchall()
        own = {category: own_shares(shares_M, spread=spread, rng=rng) for category, shares_M in shares.items()}
        for position, (category, places) in enumerate(shown):
            model = int(rng.choice(len(own[category]), p=own[category]))
            place = json.loads(places).index(model)
            answering.answer(store, person, position=position, place=place, seconds=0.0)


def _by_category(preferences: Any, models: Mapping[str, list[str]]) -> dict[str, Mapping[str, Any]]:
    """What was given for each category, none of it for models or categories that there are no questions about."""
    given = {} if preferences is None else preferences
    if not isinstance(given, Mapping):
        raise UserError("preferences go by model", expected="{MODEL: SHARE, ...}", got=str(given), key="preferences")
    if given and all(isinstance(value, Mapping) for value in given.values()):
        _require_known(given, list(models), what="no such category in the study")
        for category, of_category in given.items():
            _require_known(of_category, models[category], what=f"no such model in {category}")
        return {category: given.get(category, {}) for category in models}
    everybody = list(dict.fromkeys(model for compared in models.values() for model in compared))
    _require_known(given, everybody, what="no such model in the study")
    return dict.fromkeys(models, given)


def _require_known(given: Mapping[str, Any], known: list[str], *, what: str) -> None:
    if unknown := sorted(str(name) for name in given if name not in known):
        raise UserError(what, expected=", ".join(known), got=", ".join(unknown), key="preferences")


def _shares(given: Mapping[str, Any], category: str, models: list[str]) -> np.ndarray:
    if not given:
        return np.full(len(models), 1 / len(models))
    try:
        shares_M = np.array([float(given.get(model, 0.0)) for model in models])
    except (TypeError, ValueError):
        raise UserError("a preference is no number", got=str(dict(given)), key="preferences") from None
    if not np.isfinite(shares_M).all() or (shares_M < 0).any() or shares_M.sum() <= 0:
        raise UserError(
            f"the preferences say nothing about {category}",
            expected=f"shares of {', '.join(models)}",
            got=str(dict(given)),
            key="preferences",
        )
    return shares_M / shares_M.sum()
