"""A study in one SQLite file: questions, pictures, participants and their answers, which nothing changes or removes."""

import contextlib
import json
import secrets
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from metalora.core.atomic import atomic_path
from metalora.core.errors import UserError
from metalora.reporting.user_study import pictures
from metalora.reporting.user_study.design import CATEGORIES, PARTS, Question
from metalora.reporting.user_study.orders import showings

Kind = Literal["person", "trial", "simulated"]
"""Who answers: a participant, somebody trying the page, or nobody at all."""
FORMAT = 1
_SCHEMA = """
CREATE TABLE setting (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE picture (id INTEGER PRIMARY KEY, width INTEGER NOT NULL, height INTEGER NOT NULL, data BLOB NOT NULL);
CREATE TABLE question (
    id INTEGER PRIMARY KEY, category TEXT NOT NULL, part TEXT NOT NULL, identity TEXT NOT NULL,
    class_noun TEXT NOT NULL, prompt_id TEXT NOT NULL, prompt TEXT NOT NULL, seeds TEXT NOT NULL);
CREATE TABLE reference (
    question INTEGER NOT NULL REFERENCES question, number INTEGER NOT NULL, picture INTEGER NOT NULL REFERENCES picture,
    file TEXT NOT NULL, PRIMARY KEY (question, number)) WITHOUT ROWID;
CREATE TABLE candidate (
    question INTEGER NOT NULL REFERENCES question, model INTEGER NOT NULL, method TEXT NOT NULL,
    number INTEGER NOT NULL, picture INTEGER NOT NULL REFERENCES picture, file TEXT NOT NULL,
    PRIMARY KEY (question, model, number)) WITHOUT ROWID;
CREATE TABLE participant (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL CHECK (kind IN ('person', 'trial', 'simulated')),
    token TEXT NOT NULL UNIQUE, consented TEXT);
CREATE TABLE showing (
    participant INTEGER NOT NULL REFERENCES participant, position INTEGER NOT NULL,
    question INTEGER NOT NULL REFERENCES question, places TEXT NOT NULL,
    PRIMARY KEY (participant, position), UNIQUE (participant, question)) WITHOUT ROWID;
CREATE TABLE answer (
    participant INTEGER NOT NULL REFERENCES participant, question INTEGER NOT NULL REFERENCES question,
    position INTEGER NOT NULL, place INTEGER NOT NULL, method TEXT NOT NULL, seconds REAL NOT NULL,
    answered TEXT NOT NULL, PRIMARY KEY (participant, question), UNIQUE (participant, position)) WITHOUT ROWID;
CREATE TRIGGER answers_stay BEFORE UPDATE ON answer BEGIN SELECT RAISE(ABORT, 'answers are final'); END;
CREATE TRIGGER answers_last BEFORE DELETE ON answer BEGIN SELECT RAISE(ABORT, 'answers are final'); END;
"""


@dataclass(frozen=True)
class Invitation:
    """A participant's number, kind and secret token."""

    participant: int
    kind: Kind
    token: str


class Store:
    """An existing study file.

    Raises:
        UserError: there is none, or it is something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(
                f"there is no study {path}", expected="a file that `metalora study build` made", key="study"
            )
        try:
            with self.connect() as connection:
                found = connection.execute("PRAGMA user_version").fetchone()[0]
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path} is not a study", expected="an SQLite file", got=str(error), key="study") from None
        if found != FORMAT:
            raise UserError(f"{path} is not a study", expected=f"format {FORMAT}", got=str(found), key="study")

    @contextlib.contextmanager
    def connect(self) -> Iterator[sqlite3.Connection]:
        """A connection of one's own; what is done in it must be committed by `writing`."""
        connection = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = FULL")  # a commit has reached the disk when it returns
            connection.execute("PRAGMA foreign_keys = ON")
            yield connection
        finally:
            connection.close()

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, alone: committed at the end of the block, or not at all."""
        with self.connect() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    @property
    def settings(self) -> dict[str, Any]:
        """What the study was built with."""
        with self.connect() as connection:
            return {key: json.loads(value) for key, value in connection.execute("SELECT key, value FROM setting")}

    def invite(self, count: int, *, kind: Kind = "person") -> list[Invitation]:
        """Add `count` participants of a kind, each with a token and an order of their own."""
        settings = self.settings
        with self.writing() as connection:
            categories = {
                category: [
                    row[0]
                    for row in connection.execute("SELECT id FROM question WHERE category = ? ORDER BY id", (category,))
                ]
                for category in CATEGORIES
            }
            sizes = {c: len(settings["models"] if c in PARTS[1] else settings["pair"]) for c in CATEGORIES}
            together = list(PARTS.values()) if settings["order"] == "parts" else [CATEGORIES]
            before = connection.execute("SELECT COUNT(*) FROM participant WHERE kind = ?", (kind,)).fetchone()[0]
            made = []
            for number in range(before, before + count):
                token = secrets.token_urlsafe(24)
                cursor = connection.execute("INSERT INTO participant (kind, token) VALUES (?, ?)", (kind, token))
                assert cursor.lastrowid is not None
                made.append(Invitation(cursor.lastrowid, kind, token))
                shown = showings(
                    categories, sizes=sizes, participant=number, salt=f"{settings['salt']} {kind}", together=together
                )
                connection.executemany(
                    "INSERT INTO showing VALUES (?, ?, ?, ?)",
                    [(cursor.lastrowid, k, s.question, json.dumps(s.places)) for k, s in enumerate(shown)],
                )
        return made

    def invitations(self, *, kind: Kind = "person") -> list[Invitation]:
        """Everybody of a kind, in the order they were invited."""
        with self.connect() as connection:
            rows = connection.execute("SELECT id, kind, token FROM participant WHERE kind = ? ORDER BY id", (kind,))
            return [Invitation(*row) for row in rows]

    def require_unused(self, *, overwrite: bool) -> None:
        """Refuse to let another study take this one's place.

        Args:
            overwrite: whether links that may have been given out may end.

        Raises:
            UserError: it has answers, or links that may not end.
        """
        with self.connect() as connection:
            _require_unused(connection, self.path, overwrite=overwrite)

    def end(self, *, overwrite: bool) -> None:
        """End a study for good where `require_unused` allows it: no link takes an answer any more, and no `-wal` is
        left beside the file, which SQLite would take for that of the next one."""
        with contextlib.closing(sqlite3.connect(self.path, timeout=30, isolation_level=None)) as connection:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("BEGIN IMMEDIATE")  # waits until nobody else has it open
            _require_unused(connection, self.path, overwrite=overwrite)
            connection.execute("DELETE FROM showing")
            connection.execute("DELETE FROM participant")
            connection.execute("COMMIT")
            connection.execute("PRAGMA journal_mode = DELETE")

    def answers(self) -> int:
        """How many answers there are, of everybody."""
        with self.connect() as connection:
            return connection.execute("SELECT COUNT(*) FROM answer").fetchone()[0]


def _require_unused(connection: sqlite3.Connection, path: Path, *, overwrite: bool) -> None:
    (answers,) = connection.execute("SELECT COUNT(*) FROM answer").fetchone()
    (links,) = connection.execute("SELECT COUNT(*) FROM participant WHERE kind != 'simulated'").fetchone()
    if answers:
        raise UserError(
            f"the study {path} is another one and has {answers} answers",
            expected="a new file for a new study",
            key="study",
        )
    if links and not overwrite:
        raise UserError(
            f"the study {path} is another one and has {links} links, which may have been given out",
            expected="a new file for a new study, or overwrite=true to end these links",
            key="study, overwrite",
        )


def write_study(
    path: Path,
    *,
    questions: Sequence[Question],
    settings: Mapping[str, Any],
    side: int,
    quality: int,
    overwrite: bool = False,
    progress: Any = None,
) -> Store:
    """Write a new study file, its pictures inside; nobody is invited yet. A study that is there then comes to its end.

    Args:
        settings: models, pair, order and whatever the study is to remember; plain values.
        side: the longer side of a picture in pixels, at most.
        quality: of WebP, 1 to 100.
        overwrite: whether the links of the study that is there may end.
        progress: called as progress("pictures", done, total).

    Raises:
        UserError: a picture cannot be read, or the study that is there may not end (`Store.require_unused`).
    """
    with atomic_path(path) as temporary, contextlib.closing(sqlite3.connect(temporary)) as connection:
        connection.executescript(_SCHEMA)
        connection.execute(f"PRAGMA user_version = {FORMAT}")
        told = dict(settings) | {"salt": secrets.token_hex(16)}
        connection.executemany("INSERT INTO setting VALUES (?, ?)", [(k, json.dumps(v)) for k, v in told.items()])
        for number, question in enumerate(questions):
            _write_question(connection, number, question, side=side, quality=quality)
            if progress:
                progress("pictures", number + 1, len(questions))
        connection.commit()
        if path.exists():  # encoding took a while: it may have been answered since
            Store(path).end(overwrite=overwrite)
    path.chmod(0o600)  # tokens are secrets
    store = Store(path)
    with store.connect() as connection:
        connection.execute("PRAGMA journal_mode = WAL")  # the file remembers it
    return store


def _write_question(connection: sqlite3.Connection, number: int, q: Question, *, side: int, quality: int) -> None:
    connection.execute(
        "INSERT INTO question VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (number, q.category, q.part, q.identity, q.class_noun, q.prompt_id, q.prompt, json.dumps(q.seeds)),
    )

    def add(picture: pictures.Picture) -> int | None:
        values = (picture.width, picture.height, picture.data)
        return connection.execute("INSERT INTO picture (width, height, data) VALUES (?, ?, ?)", values).lastrowid

    for k, photo in enumerate(q.references):
        row = (number, k, add(pictures.reference(photo, side=side, quality=quality)), photo.name)
        connection.execute("INSERT INTO reference VALUES (?, ?, ?, ?)", row)
    shown = [(method, k, path) for method, paths in q.candidates.items() for k, path in enumerate(paths)]
    encoded = pictures.candidates([path for *_, path in shown], side=side, quality=quality)
    models = list(q.candidates)
    for (method, k, path), picture in zip(shown, encoded, strict=True):
        row = (number, models.index(method), method, k, add(picture), "/".join(path.parts[-3:]))
        connection.execute("INSERT INTO candidate VALUES (?, ?, ?, ?, ?, ?)", row)
