"""The speed commands take the words they name and no others."""

from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.speed import cohort, launchers, measuring, memory, people, stage2_step, stages, steps
from experiments.speed.measuring import command, settings_of, write
from metalora.core.errors import UserError

DEFAULTS = {"repeats": 3, "device": "cpu", "peft": True}


def test_words_take_their_defaults_place_and_type() -> None:
    assert settings_of([], DEFAULTS) == DEFAULTS
    found = settings_of(["repeats=9", "device=cuda=0", "peft=False"], DEFAULTS)
    assert found == {"repeats": 9, "device": "cuda=0", "peft": False}


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("threads=1", "unknown option; expected repeats=3 device=cpu peft=True; got threads=1"),
        ("--threads", "unknown option; .*got --threads"),
        ("repeats=many", "not a value of this option; expected int; got many; key: repeats"),
        ("peft=perhaps", "expected bool; got perhaps; key: peft"),
    ],
)
def test_other_words_are_refused(word: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        settings_of([word], DEFAULTS)


@pytest.mark.parametrize("main", [module.main for module in (cohort, launchers, memory, people, stage2_step, steps)])
def test_no_command_measures_under_a_setting_it_does_not_have(main: Callable[[list[str]], None]) -> None:
    with pytest.raises(UserError, match=r"unknown option; .*got colour=red"):
        main(["colour=red"])


def test_what_is_wrong_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["stages", str(tmp_path)])
    with pytest.raises(SystemExit, match="stages: nothing was run here; "):
        command("stages", stages.main)


def test_a_result_is_named_after_its_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "RESULTS", tmp_path)
    path = write("stage2_step", {"repeats": 1})
    assert path.read_text().splitlines()[1] == f'  "date": "{path.stem.removeprefix("stage2_step-")}",'
