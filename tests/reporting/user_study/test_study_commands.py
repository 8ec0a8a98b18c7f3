"""`metalora study`: its commands in turn, bad words, and a server killed in the middle of answering, served again."""

import csv
import dataclasses
import http.client
import os
import re
import shutil
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from flow import Client, Served
from hydra import compose, initialize_config_dir
from made_up_images import METHODS, PROMPTS, make_images, study, words

from metalora.cli import register_resolvers
from metalora.configuration import conf_dir
from metalora.core.errors import UserError
from metalora.core.manifest import read_manifest, write_manifest
from metalora.reporting import look
from metalora.reporting.study import paper_reference
from metalora.reporting.user_study import answering
from metalora.reporting.user_study import store as store_module
from metalora.reporting.user_study.server import StudyServer
from metalora.reporting.user_study.store import Store
from metalora.tasks.user_study import run


def metalora(action: str, *more: str) -> None:
    """`metalora study ACTION ...` within this process."""
    register_resolvers()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        run(compose("config", overrides=["task=study", f"action={action}", *more]))


def build(made_up: Path, tmp_path: Path, *more: str) -> None:
    prompts = tmp_path / "prompts.yaml"
    kinds = {"multi": "frontal", "recontextualized": "recontextualized", "stylized": "stylized"}
    entries = [
        f"{{id: {i}, kind: {k}, text: 'a {{noun}} as {i} says'}}" for c, k in kinds.items() for i in sorted(PROMPTS[c])
    ]
    prompts.write_text("prompts:\n" + "".join(f"  - {entry}\n" for entry in entries))
    benchmark = ["benchmark=meta_phd", f"benchmark.root={made_up / 'benchmark'}", f"benchmark.prompts={prompts}"]
    metalora("build", f"study={tmp_path / 'study.sqlite'}", f"images={made_up / 'images'}", *benchmark, *more)


@pytest.mark.slow
def test_kill_minus_9_loses_no_acknowledged_answer_and_everybody_goes_on(
    made_up: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three participants answer without pause; the server is killed under them twice, then they finish."""
    build(made_up, tmp_path, "participants=3")
    said = capsys.readouterr()
    assert "best of 5" in said.out + said.err and "32 questions, from the ffhq part 32" in said.out + said.err
    store = Store(tmp_path / "study.sqlite")
    acknowledged: set[tuple[str, int, int]] = set()
    tokens: list[str] = []

    def answering(client: Client, limit: int, enough: threading.Event) -> None:
        try:
            client.agree()
            while (told := client.state()).get("question"):
                position, place = told["answered"], (told["answered"] * 7 + 3) % told["question"]["options"]
                if client.answer(position, place).status == 200:
                    acknowledged.add((client.token, position, place))
                if len(acknowledged) >= limit:
                    os.kill(served.process.pid, signal.SIGKILL)  # in the middle of the others' requests
                    enough.set()
        except (OSError, http.client.HTTPException):
            pass  # the server was killed

    for limit in (25, 90, 10_000):
        served = Served(tmp_path / "study.sqlite")
        assert tokens in ([], served.tokens)  # the same links as before
        tokens = served.tokens
        enough = threading.Event()
        people = [threading.Thread(target=answering, args=(Client(served.port, t), limit, enough)) for t in tokens]
        for person in people:
            person.start()
        if limit < 10_000:
            assert enough.wait(300)
        for person in people:
            person.join(300)
        served.kill()
        with store.connect() as connection:
            stored = set(
                connection.execute(
                    "SELECT token, position, place FROM answer JOIN participant ON participant.id = participant"
                )
            )
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert acknowledged <= stored
        assert len(stored - acknowledged) <= 2 * len(tokens)  # written, but killed before the word got out
        if limit < 10_000:
            assert limit <= len(stored) < 192
    assert len(stored) == 3 * 64


def test_the_commands_in_turn(made_up: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Build, build again, simulate, analyse; another study does not take the place of one with answers."""
    file = tmp_path / "study.sqlite"

    def said() -> str:
        got = capsys.readouterr()
        return got.out + got.err

    build(made_up, tmp_path, *SMALL)
    tokens = [i.token for i in Store(file).invitations()]
    assert len(tokens) == 25 and len(Store(file).invitations(kind="trial")) == 1
    build(made_up, tmp_path, *SMALL, "participants=26")
    assert "there already" in said()
    assert [i.token for i in Store(file).invitations()][:-1] == tokens
    with pytest.raises(UserError, match="no answers at all"):
        metalora("analyse", f"study={file}")
    metalora("simulate", f"study={file}", "participants=6", "preferences={meta_lora:0.8,pulid:0.2}")
    assert "6 SIMULATED" in said()
    metalora("analyse", f"study={file}", "simulated=true", "resamples=500")
    text = said()
    assert text.startswith("SIMULATED") and "Table 2" in text and "Meta-LoRA minus PuLID" in text
    assert (tmp_path / "simulated_shares.csv").is_file() and not (tmp_path / "shares.csv").exists()
    with pytest.raises(UserError, match="is another one and has 48 answers"):
        build(made_up, tmp_path, *SMALL, "seed=1")


@pytest.mark.parametrize("overwrite", [True, False])
def test_what_happened_while_pictures_were_encoded_is_not_lost(
    made_up: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    """An answer, or a link that may not end: the study stays as it is, its links too."""
    file = tmp_path / "study.sqlite"
    build(made_up, tmp_path, *SMALL, "participants=2")
    store = Store(file)
    if not overwrite:
        store.end(overwrite=True)  # as if nobody had been invited
    write = store_module._write_question

    def meanwhile(*given: Any, **more: Any) -> None:
        write(*given, **more)
        if not overwrite:
            store.invite(1)
        elif store.answers() == 0:
            answer_first(store, store.invitations()[0].token)

    monkeypatch.setattr(store_module, "_write_question", meanwhile)
    told = "has 1 answers" if overwrite else "links, which may have been given out"
    with pytest.raises(UserError, match=told):
        build(made_up, tmp_path, *SMALL, "seed=1", f"overwrite={overwrite}")
    assert store.settings["seed"] == 0 and store.answers() == overwrite and store.invitations()
    assert [path.name for path in tmp_path.glob("*study*")] == ["study.sqlite"]


def answer_first(store: Store, token: str) -> None:
    """A participant agrees and answers the first question."""
    for _ in range(2):
        person = answering.find(store, token)
        assert person is not None
        answering.consent(store, person)
    answering.answer(store, person, position=0, place=0, seconds=1.0)


def test_a_study_whose_place_is_taken_takes_no_answer(made_up: Path, tmp_path: Path) -> None:
    """Who was let in before it ended is refused after; a reader who has it open is waited for."""
    store = study(tmp_path / "study.sqlite", made_up)
    (invitation,) = store.invite(1)
    for _ in range(2):
        person = answering.find(store, invitation.token)
        assert person is not None
        answering.consent(store, person)
    reading, closed = threading.Event(), threading.Event()

    def read() -> None:
        with store.connect() as connection:
            connection.execute("BEGIN")
            connection.execute("SELECT COUNT(*) FROM answer").fetchone()
            reading.set()
            time.sleep(0.3)
            closed.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert reading.wait(30)
    store.end(overwrite=True)
    assert closed.is_set()
    reader.join()
    assert not (tmp_path / "study.sqlite-wal").exists()
    with pytest.raises(answering.RefusedError):
        answering.answer(store, person, position=0, place=0, seconds=1.0)
    assert store.answers() == 0 and not store.invitations()


def test_a_part_without_questions_needs_no_images_of_its_models(
    made_up: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """LoRA and LoRA+aug alone, though part 2 would be against Meta-LoRA: built, answered and analysed."""
    make_images(tmp_path / "images", made_up / "benchmark", methods=("lora", "lora_aug"))
    none = [f"questions.{c}={{unsplash:0,ffhq:0}}" for c in ("recontextualized", "stylized")]
    build(made_up, tmp_path, *SMALL, *none, f"images={tmp_path / 'images'}")
    file = f"study={tmp_path / 'study.sqlite'}"
    with pytest.raises(UserError, match=r"no such model in the study; expected lora, lora_aug; got meta_lora"):
        metalora("simulate", file, "preferences={lora:1,lora_aug:3,meta_lora:90}")
    metalora("simulate", file, "participants=3", "preferences={multi:{lora:1,lora_aug:3},single:{lora:1}}")
    with pytest.raises(UserError, match=r"expected lora, lora_aug; got meta_lora; key: ours"):
        metalora("analyse", file, "simulated=true", "resamples=200")
    metalora("analyse", file, "simulated=true", "resamples=200", "ours=lora_aug")
    assert "LoRA+aug minus LoRA" in capsys.readouterr().out
    page = (tmp_path / "simulated_study.md").read_text()
    assert "- LoRA+aug: rank 1 at 625 iterations" in page and "- Meta-LoRA:" not in page


SMALL = [f"questions.{c}={{unsplash:2,ffhq:0}}" for c in ("multi", "single")]
SMALL += [f"questions.{c}={{unsplash:0,ffhq:2}}" for c in ("recontextualized", "stylized")]


def test_the_papers_share_stands_beside_each_of_its_five_models(
    made_up: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the names that the runners of `metalora baseline` write into the manifests."""
    written = {yaml.safe_load(path.read_text())["method"] for path in (conf_dir() / "baseline").glob("*.yaml")}
    assert set(METHODS) - {"lora_aug", "meta_lora"} <= written
    build(made_up, tmp_path, *SMALL)
    metalora("simulate", f"study={tmp_path / 'study.sqlite'}", "participants=3")
    metalora("analyse", f"study={tmp_path / 'study.sqlite'}", "simulated=true", "resamples=200")
    assert "the paper's are of a choice between other models" not in capsys.readouterr().out
    shares = list(csv.DictReader((tmp_path / "simulated_shares.csv").open()))
    for table, models, columns in (("table_1", METHODS, 3), ("table_2", ("pulid", "meta_lora"), 3)):
        rows = {row["method"]: row for row in paper_reference()["user_study"][table]["rows"]}
        ours = [row for row in shares if row["table"] == table[-1]]
        assert {row["model"] for row in ours} == set(models) and len(ours) == columns * len(models)
        for row in ours:
            assert float(row["paper_percent"]) == rows[row["model"]][row["column"]]


def test_make_study_is_the_best_of_five_and_meets_who_needs_no_tuning(made_up: Path, tmp_path: Path) -> None:
    """The words of the Makefile, over images of these five and of one more; without it LoRA+aug is the opponent."""
    makefile = Path(__file__).parents[3] / "Makefile"
    target = makefile.read_text().split("\nstudy:")[1].split("\n\n")[0]
    (word,) = re.findall(r"'(models=\[.*?\])'", target)
    models = word.removeprefix("models=[").removesuffix("]").split(",")
    assert len(models) == 5 and all(look.label(method) != method for method in models)
    make_images(tmp_path / "images", made_up / "benchmark", methods=(*models, "textual_inversion"))
    build(made_up, tmp_path, *SMALL, word, f"images={tmp_path / 'images'}")
    built = Store(tmp_path / "study.sqlite").settings
    assert built["models"] == models and built["pair"] == ["ip_adapter", "meta_lora"]
    shutil.rmtree(tmp_path / "images" / "ip_adapter")
    build(made_up, tmp_path, *SMALL, f"images={tmp_path / 'images'}", "overwrite=true")
    assert Store(tmp_path / "study.sqlite").settings["pair"] == ["lora_aug", "meta_lora"]


def test_the_build_holds_images_against_the_benchmark(made_up: Path, tmp_path: Path) -> None:
    """Images of another benchmark are refused; a line without words is asked in the benchmark's."""
    shutil.copytree(made_up / "images", tmp_path / "images")
    file = tmp_path / "images" / "pulid" / "manifest.jsonl"
    lines = read_manifest(file)
    for said, told in (
        (
            {"benchmark": "meta_phd@000000000000"},
            r"another benchmark.*expected meta_phd@\w+; got meta_phd@000000000000",
        ),
        ({"reference_sha256": "0" * 64}, "another photo than the benchmark's reference"),
        ({"prompt": "a cat"}, "other words than the benchmark's"),
    ):
        write_manifest(file, [dataclasses.replace(line, **said) for line in lines])
        with pytest.raises(UserError, match=told):
            build(made_up, tmp_path, *SMALL, f"images={tmp_path / 'images'}")
        assert not (tmp_path / "study.sqlite").exists()
    for method in METHODS:
        file = tmp_path / "images" / method / "manifest.jsonl"
        write_manifest(file, [dataclasses.replace(line, prompt="") for line in read_manifest(file)])
    build(made_up, tmp_path, *SMALL, f"images={tmp_path / 'images'}")
    with Store(tmp_path / "study.sqlite").connect() as connection:
        asked = connection.execute("SELECT prompt, prompt_id, class_noun FROM question").fetchall()
    assert len(asked) == 8 and all(prompt == words(prompt_id, noun) for prompt, prompt_id, noun in asked)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("models=[meta_lora]", "two to nine"),
        ("models=[meta_lora,dreambooth]", "no images of dreambooth"),
        ("pair=[meta_lora,meta_lora]", "part 2 compares two"),
        ("order=odd", "mixed or parts"),
        ("question_prompts.multi=painted", "no such kind of prompt"),
        ("questions.multi.unsplash=-1", "questions.multi.unsplash"),
        ("questions.multi.unsplash=40", "too few images for 40 multi"),
        ("references=0", "references"),
        ("side=many", "side"),
        ("rank=4", "no images of lora_aug"),
        ("images=[nowhere]", "no folder nowhere"),
        ("images=null", "no images to build a study from"),
        ("models=meta_lora", "two to nine"),
        ("pair=meta_lora", "part 2 compares two"),
        ("questions=64", "several values belong here"),
        ("questions.multi=16", "several values belong here"),
        ("question_prompts=frontal", "several values belong here"),
        ("checkpoints=375", "several values belong here"),
    ],
)
def test_bad_values_end_in_one_line(made_up: Path, tmp_path: Path, word: str, told: str) -> None:
    more = ["models=[lora_aug,meta_lora]", "pair=[lora_aug,meta_lora]"] if word.startswith("rank") else []
    with pytest.raises(UserError, match=told) as caught:
        build(made_up, tmp_path, *more, word)
    assert "\n" not in str(caught.value) and not (tmp_path / "study.sqlite").exists()


@pytest.mark.parametrize("action", ["serve", "analyse", "simulate", "paint", "'???'"])
def test_nothing_to_work_on_ends_in_one_line(tmp_path: Path, action: str) -> None:
    told = "there is no study" if action in ("serve", "analyse", "simulate") else "no such part of a study"
    with pytest.raises(UserError, match=told):
        metalora(action, f"study={tmp_path / 'nothing.sqlite'}")


def test_a_busy_port_and_a_missing_consent_text_end_in_one_line(made_up: Path, tmp_path: Path) -> None:
    study(tmp_path / "study.sqlite", made_up)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match=r"cannot listen on 127.0.0.1"):
            metalora("serve", f"study={tmp_path / 'study.sqlite'}", f"port={taken.getsockname()[1]}")
    for port in ("null", "http", "80.5", "65536"):
        with pytest.raises(UserError, match=r"a whole number from 0 to 65535; got .*; key: port"):
            metalora("serve", f"study={tmp_path / 'study.sqlite'}", f"port={port}")
    with pytest.raises(UserError, match="cannot read the consent text"):
        metalora("serve", f"study={tmp_path / 'study.sqlite'}", "port=0", f"consent={tmp_path / 'none.txt'}")


def test_serving_tells_links_and_what_participants_agree_to(
    made_up: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = study(tmp_path / "study.sqlite", made_up)
    store.invite(3)
    heard: list[str] = []
    monkeypatch.setattr(StudyServer, "serve_forever", lambda server: heard.append(server.consent))
    own = tmp_path / "consent.txt"
    own.write_text("Our own words, {as they are}.\n")
    metalora("serve", f"study={store.path}", "port=0", "contact=ask@example.org")
    metalora("serve", f"study={store.path}", "port=0", f"consent={own}", "participants=4")
    assert "There are 8 questions, which take about 2 minutes" in heard[0] and heard[0].endswith("ask@example.org")
    assert heard[1] == "Our own words, {as they are}."
    first, second = (part.count("/p/") for part in capsys.readouterr().out.split("study: ")[1:])
    assert (first, second) == (1 + 3, 1 + 4)  # a trial beside them; none are added unless asked for
