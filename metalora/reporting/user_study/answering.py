"""What one participant may do: see the next question and its pictures, answer it once; nothing of anybody else."""

import json
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from metalora.reporting.user_study.design import QUESTION, part_of
from metalora.reporting.user_study.store import Store


class RefusedError(Exception):
    """The participant may not do this now: not agreed yet, an answer that is there already, or a question too early."""


@dataclass(frozen=True)
class Participant:
    """Somebody who came with a token that exists."""

    number: int
    kind: str
    consented: bool


def find(store: Store, token: str) -> Participant | None:
    """Who a token belongs to."""
    with store.connect() as connection:
        row = connection.execute("SELECT id, kind, consented FROM participant WHERE token = ?", (token,)).fetchone()
    return Participant(row[0], row[1], row[2] is not None) if row else None


def consent(store: Store, participant: Participant) -> None:
    """Note that the participant agreed; a second time changes nothing."""
    with store.writing() as connection:
        connection.execute(
            "UPDATE participant SET consented = ? WHERE id = ? AND consented IS NULL", (_now(), participant.number)
        )


def state(store: Store, participant: Participant) -> dict[str, Any]:
    """What the page needs to know: how far the participant is and, once agreed, the next question; no model's name."""
    with store.connect() as connection:
        answered, total = _progress(connection, participant)
        told: dict[str, Any] = {
            "agreed": participant.consented,
            "kind": participant.kind,
            "answered": answered,
            "total": total,
        }
        if participant.consented and answered < total:
            question, places = _shown(connection, participant, answered)
            category, prompt = connection.execute(
                "SELECT category, prompt FROM question WHERE id = ?", (question,)
            ).fetchone()
            (references,) = connection.execute(
                "SELECT COUNT(*) FROM reference WHERE question = ?", (question,)
            ).fetchone()
            (images,) = connection.execute(
                "SELECT COUNT(*) FROM candidate WHERE question = ? AND model = 0", (question,)
            ).fetchone()
            part = part_of(category)
            told["question"] = {
                "position": answered,
                "part": part,
                "text": QUESTION[part],
                "prompt": prompt,
                "references": references,
                "options": len(places),
                "images": images,
            }
    return told


def answer(store: Store, participant: Participant, *, position: int, place: int, seconds: float) -> None:
    """Write an answer for good; it is on the disk when this returns.

    Raises:
        RefusedError: not agreed yet, or another question than the next one.
        ValueError: no such place.
    """
    if not participant.consented:
        raise RefusedError("not agreed yet")
    with store.writing() as connection:
        answered, total = _progress(connection, participant)
        if position != answered or answered >= total:
            raise RefusedError("this question is answered already" if position < answered else "not the next question")
        question, places = _shown(connection, participant, position)
        if not 0 <= place < len(places):
            raise ValueError("no such place")
        (method,) = connection.execute(
            "SELECT method FROM candidate WHERE question = ? AND model = ? AND number = 0", (question, places[place])
        ).fetchone()
        connection.execute(
            "INSERT INTO answer VALUES (?, ?, ?, ?, ?, ?, ?)",
            (participant.number, question, position, place, method, seconds, _now()),
        )


def reference_picture(store: Store, participant: Participant, *, position: int, number: int) -> bytes | None:
    """A reference photo of the next question; None when there is none or it is not the participant's turn to see it."""
    with store.connect() as connection:
        if not _may_see(connection, participant, position):
            return None
        question, _ = _shown(connection, participant, position)
        row = connection.execute(
            "SELECT data FROM picture JOIN reference ON picture.id = reference.picture "
            "WHERE question = ? AND number = ?",
            (question, number),
        ).fetchone()
    return row[0] if row else None


def option_picture(store: Store, participant: Participant, *, position: int, place: int, number: int) -> bytes | None:
    """A picture in a place of the next question, as `reference_picture`."""
    with store.connect() as connection:
        if not _may_see(connection, participant, position):
            return None
        question, places = _shown(connection, participant, position)
        if place >= len(places):
            return None
        row = connection.execute(
            "SELECT data FROM picture JOIN candidate ON picture.id = candidate.picture "
            "WHERE question = ? AND model = ? AND number = ?",
            (question, places[place], number),
        ).fetchone()
    return row[0] if row else None


def _may_see(connection: sqlite3.Connection, participant: Participant, position: int) -> bool:
    answered, total = _progress(connection, participant)
    return participant.consented and position == answered < total


def _progress(connection: sqlite3.Connection, participant: Participant) -> tuple[int, int]:
    return connection.execute(
        "SELECT (SELECT COUNT(*) FROM answer WHERE participant = ?1), "
        "(SELECT COUNT(*) FROM showing WHERE participant = ?1)",
        (participant.number,),
    ).fetchone()


def _shown(connection: sqlite3.Connection, participant: Participant, position: int) -> tuple[int, list[int]]:
    question, places = connection.execute(
        "SELECT question, places FROM showing WHERE participant = ? AND position = ?", (participant.number, position)
    ).fetchone()
    return question, json.loads(places)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
