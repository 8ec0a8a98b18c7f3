"""The server: a participant gets through; nobody gets a model's name, a second answer, or another one's answers."""

import json
import re
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flow import Client
from made_up_images import METHODS, PAPER, colour, study

from metalora.core.errors import UserError
from metalora.reporting.user_study.server import MAX_BODY, StudyServer
from metalora.reporting.user_study.store import Store


@pytest.fixture
def store(made_up: Path, tmp_path: Path) -> Store:
    return study(tmp_path / "study.sqlite", made_up)


@pytest.fixture
def server(store: Store) -> Iterator[StudyServer]:
    with StudyServer(store, consent="Please agree.") as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def client(server: StudyServer) -> Client:
    return Client(server.server_port, server.store.invite(1)[0].token)


def rows(store: Store, query: str, *values: object) -> list[tuple]:
    with store.connect() as connection:
        return connection.execute(query, values).fetchall()


def test_a_participant_gets_through_all_64_questions(made_up: Path, tmp_path: Path) -> None:
    """Consent, pictures that are those of the shown places, answers stored under the right model, thanks."""
    store = study(tmp_path / "study.sqlite", made_up, counts=PAPER)
    (invitation,) = store.invite(1)
    with StudyServer(store, consent="Please agree.") as server:
        threading.Thread(target=server.serve_forever).start()
        client = Client(server.server_port, invitation.token)
        assert client.state() == {
            "agreed": False,
            "kind": "person",
            "answered": 0,
            "total": 64,
            "consent": "Please agree.",
        }
        client.agree()
        wanted = []
        for position in range(64):
            told = client.state()
            asked = told["question"]
            assert (told["answered"], asked["position"]) == (position, position)
            assert "text prompt" in asked["text"] if asked["part"] == 1 else "variety" in asked["text"]
            ((question, identity, prompt_id, seeds, places, prompt),) = rows(
                store,
                "SELECT question, identity, prompt_id, seeds, places, prompt FROM showing "
                "JOIN question ON question.id = question WHERE participant = ? AND position = ?",
                invitation.participant,
                position,
            )
            assert asked["prompt"] == prompt and asked["options"] == len(json.loads(places))
            models = METHODS if asked["part"] == 1 else ("pulid", "meta_lora")
            for place, model in enumerate(json.loads(places)):
                for number, seed in enumerate(json.loads(seeds)):
                    shown = client.ask(f"option/{position}/{place}/{number}").picture
                    assert shown.getpixel((20, 20)) == colour(models[model], identity, prompt_id, seed)
            photos = [client.ask(f"reference/{position}/{k}").picture for k in range(asked["references"])]
            assert len({photo.getpixel((20, 20)) for photo in photos}) == asked["references"]
            place = position % asked["options"]
            assert client.answer(position, place).status == 200
            wanted.append((question, models[json.loads(places)[place]]))
        assert client.state() == {"agreed": True, "kind": "person", "answered": 64, "total": 64}
        assert client.answer(64, 0).status == 409
        server.shutdown()
    assert rows(store, "SELECT question, method FROM answer ORDER BY position") == wanted


def test_no_reply_says_which_model_made_what(client: Client, store: Store) -> None:
    client.agree()
    other = store.invite(1)[0].token
    secrets = [
        *METHODS,
        "lora",
        "photo",
        "seed",
        "checkpoint",
        "frontal-0",
        "scene-0",
        "p00",
        "ffhq",
        "unsplash",
        other,
    ]
    secrets += [name for (name,) in rows(store, "SELECT DISTINCT file FROM candidate")]
    for position in range(8):
        asked = client.state()["question"]
        paths = ["state", *(f"reference/{position}/{k}" for k in range(asked["references"]))]
        paths += [f"option/{position}/{k}/{n}" for k in range(asked["options"]) for n in range(asked["images"])]
        for path in paths:
            reply = client.ask(path)
            prompt = asked["prompt"].encode()  # the made-up prompts name their id; participants see prompts
            said = (reply.body.replace(prompt, b"") + repr(reply.headers).encode()).lower()
            assert reply.status == 200 and not [word for word in secrets if word.lower().encode() in said]
            assert not {"ETag", "Last-Modified", "Content-Disposition"} & set(reply.headers)
        client.answer(position, 0)
    for path in ("/", "/style.css", "/script.js", f"/p/{client.token}/"):
        said = client.ask(path).body.lower()
        assert not [m for m in (*METHODS, "lora") if m.encode() in said]


def test_an_answer_is_given_once_and_for_good(client: Client, store: Store) -> None:
    client.agree()
    assert client.answer(0, 1).status == 200
    before = rows(store, "SELECT * FROM answer")
    for place in (1, 0):
        again = client.answer(0, place)
        assert again.status == 409 and "already" in again.json["error"]
    assert rows(store, "SELECT * FROM answer") == before
    for statement in ("UPDATE answer SET place = 0", "DELETE FROM answer"):
        with pytest.raises(sqlite3.IntegrityError, match="answers are final"), store.writing() as connection:
            connection.execute(statement)
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"), store.writing() as connection:
        connection.execute("INSERT INTO answer SELECT participant, question, 7, place, method, 1, '' FROM answer")
    assert rows(store, "SELECT * FROM answer") == before


def test_many_at_once_one_answer_counts(client: Client, store: Store) -> None:
    client.agree()
    for position in range(3):
        with ThreadPoolExecutor(8) as pool:
            statuses = list(pool.map(lambda k, at=position: client.answer(at, k % 2).status, range(8)))
        assert sorted(statuses) == [200] + [409] * 7
    assert rows(store, "SELECT COUNT(*) FROM answer") == [(3,)]


def test_everybody_at_once_loses_nothing(server: StudyServer, store: Store) -> None:
    people = [Client(server.server_port, invitation.token) for invitation in store.invite(6)]

    def all_of(client: Client) -> list[int]:
        client.agree()
        return [client.answer(position, position % 2).status for position in range(8)]

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(all_of, people)) == [[200] * 8] * 6
    assert rows(store, "SELECT participant, COUNT(*) FROM answer GROUP BY 1") == [(k, 8) for k in range(1, 7)]


def test_nothing_before_consent_and_only_the_next_question(client: Client, store: Store) -> None:
    assert "question" not in client.state()
    assert client.answer(0, 0).status == 409
    assert client.ask("reference/0/0").status == 404
    assert client.ask("consent", {"agree": False}).status == 400
    assert client.ask("consent", {}).status == 400
    client.agree()
    first = rows(store, "SELECT consented FROM participant")
    client.agree()
    assert rows(store, "SELECT consented FROM participant") == first
    assert client.answer(1, 0).status == 409
    assert client.ask("option/1/0/0").status == 404  # not yet
    assert client.ask("option/0/0/0").status == 200
    client.answer(0, 0)
    assert client.ask("option/0/0/0").status == 404  # no more
    assert client.ask("option/1/9/0").status == client.ask("option/1/0/9").status == 404
    assert client.ask("reference/1/9").status == 404


def test_nobody_reads_answers_or_another_participant(client: Client, store: Store, server: StudyServer) -> None:
    client.agree()
    client.answer(0, 1)
    stranger = Client(server.server_port, store.invite(1)[0].token)
    assert stranger.state()["answered"] == 0
    assert stranger.ask("option/0/0/0").status == 404  # not agreed
    assert set(client.state()) == {"agreed", "kind", "answered", "total", "question"}  # no choice, not even one's own
    for token in ("A" * 32, "", "%00" * 10, client.token[:-1], client.token + "A", client.token.swapcase()):
        guess = Client(server.server_port, token)
        for path in ("", "state", "option/0/0/0"):
            assert guess.ask(path).status in (404, 308)  # 308 only adds the slash
        assert guess.ask("answer", {"position": 0, "place": 0, "seconds": 0}).status == 404
    for path in ("answers", "answer", "../state", "participants", "export", "study.sqlite"):
        assert client.ask(path).status == 404


@pytest.mark.parametrize(
    "path",
    [
        "/../study.sqlite",
        "/study.sqlite",
        "//etc/passwd",
        "/p/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/style.css/../study.sqlite",
        "/page.html",
        "/p/",
        "/style.css?x=1",
        "/..%5c..%5cx",
        "/" + "a" * 5000,
        "http://example.org/",
    ],
)
def test_no_path_leads_out(client: Client, path: str) -> None:
    assert client.ask(path).status == 404


BAD = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"{}",
    b"\xff\xfe",
    b"[" * 900,
    b'{"position": 0, "place": 0}',
    b'{"position": 0, "place": 0, "seconds": 1, "method": "meta_lora"}',
    b'{"position": "0", "place": 0, "seconds": 1}',
    b'{"position": 0, "place": true, "seconds": 1}',
    b'{"position": 0, "place": 0.0, "seconds": 1}',
    b'{"position": 0, "place": -1, "seconds": 1}',
    b'{"position": 0, "place": 99, "seconds": 1}',
    b'{"position": 0, "place": 1e99, "seconds": 1}',
    b'{"position": 0, "place": 0, "seconds": NaN}',
    b'{"position": 0, "place": 0, "seconds": Infinity}',
    b'{"position": 0, "place": 0, "seconds": -1}',
    b'{"position": 0, "place": 0, "seconds": "1; DROP TABLE answer"}',
    b'{"position": 100000000000000000000000, "place": 0, "seconds": 1}',
]


@pytest.mark.parametrize("body", BAD)
def test_bad_bodies_are_refused_and_change_nothing(client: Client, store: Store, body: bytes) -> None:
    client.agree()
    assert client.ask("answer", body).status == 400
    assert rows(store, "SELECT COUNT(*) FROM answer") == [(0,)]


def test_size_and_kind_of_requests_are_limited(client: Client, store: Store) -> None:
    client.agree()
    good = json.dumps({"position": 0, "place": 0, "seconds": 1}).encode()
    assert client.ask("answer", good + b" " * MAX_BODY).status == 413
    assert client.ask("answer", good, headers={"Content-Length": "999999999"}).status == 413
    assert client.ask("answer", good, headers={"Content-Length": "-5"}).status == 411
    assert client.ask("answer", good, headers={"Transfer-Encoding": "chunked"}).status == 411
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert client.ask("answer", good, headers={"Content-Type": kind}).status == 415
    for verb in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        assert client.ask("answer", good, verb=verb).status == 501
    assert rows(store, "SELECT COUNT(*) FROM answer") == [(0,)]


def test_headers_keep_the_page_to_itself(client: Client) -> None:
    for path in ("/", "", "state"):
        headers = client.ask(path).headers
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["Referrer-Policy"] == "no-referrer" and headers["X-Content-Type-Options"] == "nosniff"
        assert "Python" not in headers["Server"]
    page = (
        client.ask("").body.decode() + client.ask("/style.css").body.decode() + client.ask("/script.js").body.decode()
    )
    assert not re.findall(r"https?://|//[a-z]", page.replace("// ", ""))  # nothing from anywhere else


def test_a_missing_slash_is_added(client: Client) -> None:
    reply = client.ask(f"/p/{client.token}")
    assert (reply.status, reply.headers["Location"]) == (308, f"{client.token}/")


def test_the_server_keeps_to_this_machine(store: Store) -> None:
    with StudyServer(store, consent="") as server:
        assert server.server_address[0] == "127.0.0.1"


def test_the_file_is_private_and_something_else_is_no_study(store: Store, tmp_path: Path) -> None:
    assert store.path.stat().st_mode & 0o077 == 0
    assert rows(store, "PRAGMA journal_mode") == [("wal",)] and rows(store, "PRAGMA synchronous") == [(2,)]
    (tmp_path / "text").write_text("no database, but long enough to be looked at" * 10)
    sqlite3.connect(tmp_path / "empty.sqlite").execute("CREATE TABLE x (y)").connection.close()
    for name, told in (
        ("nothing", "there is no study"),
        ("text", "is not a study"),
        ("empty.sqlite", "is not a study"),
    ):
        with pytest.raises(UserError, match=told):
            Store(tmp_path / name)


def test_tokens_are_long_and_different(store: Store) -> None:
    tokens = [invitation.token for invitation in store.invite(50)]
    assert len(set(tokens)) == 50 and all(re.fullmatch(r"[A-Za-z0-9_-]{32}", token) for token in tokens)
