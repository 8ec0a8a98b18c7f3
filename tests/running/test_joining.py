"""Processes that torchrun or srun started join the first one only when it is its turn."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metalora.core.errors import UserError
from metalora.core.lease import Lease, owner
from metalora.running.artifact import LEASE, Artifact
from metalora.running.joining import wait_for_first
from metalora.running.setting import Setting
from metalora.tasks import meta_train
from metalora.training.priors import PRIOR
from metalora.training.ranks import Ranks

SETTING = Setting(
    {
        "out": None,
        "trainer": {"device": "cpu", "threads": 1, "devices": 2, "nodes": 1, "rank_timeout": 1.0},
        "stage1": {"prior_every": None, "q_total": 2},
    }
)
TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    made = Artifact(tmp_path / "woman", {"task": "meta-train"})
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # between two leases nobody may be silent for a second
    monkeypatch.setattr(meta_train, "ensure_stage1", lambda *_, **__: None)
    monkeypatch.setattr(meta_train, "artifact_of", lambda *_: made)
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    return made


@pytest.fixture
def joined(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whose lease it was when a process began to train."""
    seen: list[str] = []

    def train(*_: Any, **__: Any) -> None:
        found = owner(artifact.folder / LEASE)
        seen.append("" if found is None or found.over else found.run)

    monkeypatch.setattr(meta_train, "_train", train)
    return seen


def rank(number: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, str(number))
    monkeypatch.setenv("GROUP_RANK", "0")
    return meta_train.meta_train(SETTING, class_noun="woman", progress=lambda *_: None)


@pytest.fixture
def second(artifact: Artifact, joined: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Thread]:
    """Another run's lease is held for longer than the time-out, while the second process of ours waits."""
    thread = threading.Thread(target=rank, args=(1, monkeypatch))
    with Lease(artifact.folder / LEASE, run="another"):
        thread.start()
        thread.join(2.0)
        assert thread.is_alive() and not joined, "it did not wait for the other run"
        yield thread


def finish(artifact: Artifact) -> None:
    (artifact.folder / PRIOR).touch()
    artifact.finish()


def test_when_another_run_finishes_the_work_nobody_joins(
    artifact: Artifact, joined: list[str], second: threading.Thread
) -> None:
    finish(artifact)
    second.join(60)
    assert not second.is_alive() and not joined


def test_when_another_run_ends_early_they_join_once_the_first_one_has_the_folder(
    artifact: Artifact, joined: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("GROUP_RANK", "0")
    ours, answers = Ranks(devices=2, timeout=1.0), []
    folder = artifact.folder / LEASE

    def wait() -> None:
        answers.append(wait_for_first(folder, ranks=ours, done=lambda: False))

    thread = threading.Thread(target=wait)
    with Lease(folder, run="another"):
        thread.start()
        time.sleep(1.5)
    assert not answers
    with Lease(folder, run=ours.run):
        thread.join(60)
    assert answers == [True]


def test_the_first_process_tells_which_run_it_is_of(joined: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rank(0, monkeypatch)
    assert joined == [Ranks(devices=2).run] and "29500" in joined[0]
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert joined == [Ranks(devices=2).run]  # as the others call it


def test_a_first_process_that_never_begins_is_waited_for_a_while(
    joined: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"process 1 of 2 has lost the first one.*within 1 s.*trainer\.rank_timeout"):
        rank(1, monkeypatch)
    assert not joined
