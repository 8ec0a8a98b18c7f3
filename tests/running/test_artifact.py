"""A folder without its manifest is unfinished; one made from something else is not taken for this one."""

import json
from pathlib import Path

import pytest

from metalora.core.errors import UserError
from metalora.running.artifact import Artifact, config_hash, stored_hash


def test_a_folder_is_complete_only_after_finish_and_only_for_its_own_configuration(tmp_path: Path) -> None:
    artifact = Artifact(tmp_path / "made", {"rank": 1}, {"prior": "abc"})
    assert not artifact.complete
    artifact.finish(people=3)
    assert artifact.complete
    assert artifact.read()["people"] == 3
    assert not Artifact(tmp_path / "made", {"rank": 2}, {"prior": "abc"}).complete
    assert not Artifact(tmp_path / "made", {"rank": 1}, {"prior": "xyz"}).complete
    assert stored_hash(tmp_path / "made") == artifact.hash


def test_the_manifest_says_what_made_it(tmp_path: Path) -> None:
    Artifact(tmp_path, {"rank": 1}).finish()
    found = json.loads((tmp_path / "manifest.json").read_text())
    assert {"config", "hash", "parents", "seconds", "peak_memory_mb", "git", "versions"} <= set(found)
    assert found["versions"]["torch"]
    assert found["peak_memory_mb"] > 1


def test_the_hash_ignores_order_and_sees_values() -> None:
    assert config_hash({"a": 1, "b": [1, 2]}) == config_hash({"b": [1, 2], "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2})


def test_a_continued_run_adds_up_its_seconds(tmp_path: Path) -> None:
    Artifact(tmp_path, {}, started=-10.0).finish()
    first = json.loads((tmp_path / "manifest.json").read_text())["seconds"]
    Artifact(tmp_path, {}, started=-10.0).finish()
    assert json.loads((tmp_path / "manifest.json").read_text())["seconds"] > 1.9 * first


def test_what_another_configuration_finished_is_unfinished_before_it_is_changed(tmp_path: Path) -> None:
    first, second = Artifact(tmp_path, {"prompt": "a"}), Artifact(tmp_path, {"prompt": "b"})
    first.finish()
    second.begin()
    first.begin(anew=True)
    assert first.complete
    second.begin(anew=True)
    assert not first.complete and not second.complete


def test_an_unfinished_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a finished output"):
        stored_hash(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="not a finished output"):
        stored_hash(tmp_path)
    assert not Artifact(tmp_path, {}).complete
