"""A folder is there as a whole or not at all."""

import shutil
from pathlib import Path

import pytest

from metalora.core.atomic import atomic_folder, clear_partial


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "made"
    target.mkdir()  # an empty one is no obstacle
    with atomic_folder(target) as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "file").write_text("text")
        assert not list(target.iterdir())
    assert (target / "deep" / "file").read_text() == "text" and list(tmp_path.iterdir()) == [target]
    assert target.stat().st_mode == (tmp_path / "made" / "deep").stat().st_mode


def test_what_goes_wrong_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "made") as partial:
        (partial / "file").write_text("text")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_what_killed_processes_left_is_cleared_and_nothing_of_another_folder(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "made.v2") as other, atomic_folder(tmp_path / "made") as killed:
        shutil.copytree(killed, kept := killed.with_name(".made.abcdefgh.partial"))
        clear_partial(tmp_path / "made")
        assert not killed.exists() and not kept.exists() and other.is_dir()
        killed.mkdir()


def test_a_folder_with_something_in_it_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "mine").write_text("mine")
    with pytest.raises(OSError, match="not empty"), atomic_folder(tmp_path / "made") as partial:
        (partial / "file").write_text("text")
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "mine"]
