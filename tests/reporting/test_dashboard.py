"""The workspace is what wandb-workspaces accepts, and shows nothing but numbers that are logged."""

import json
from pathlib import Path
from typing import Any

import pytest

from metalora.cli import main
from metalora.core.metric_names import METRICS, SAMPLES, TABLE

pytest.importorskip("wandb_workspaces", reason="the extra `dashboard` is not installed")

from metalora.reporting.dashboard import definition, workspace


def values(node: Any, key: str) -> list[Any]:
    """Every value of a key, anywhere in a definition."""
    if isinstance(node, dict):
        return [node[name] for name in node if name == key] + [v for child in node.values() for v in values(child, key)]
    return [v for child in node for v in values(child, key)] if isinstance(node, list) else []


def test_the_definition_holds_to_the_librarys_schema() -> None:
    from wandb_workspaces.workspaces import Workspace, internal

    made = workspace(entity="me", project="metalora")
    sent = definition(made)
    read = internal.View.model_validate(json.loads(json.dumps(sent)))
    assert Workspace._from_model(read).name == "metalora"
    assert definition(Workspace._from_model(read))["spec"]["section"]["panelBankConfig"]["sections"]
    sections = sent["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == [
        "Trade-off",
        "Scores over iterations",
        "Scores over ranks",
        "Samples",
        "Training",
        "Speed and memory",
    ]
    kinds = [[panel["viewType"] for panel in section["panels"]] for section in sections]
    assert kinds[0] == ["Scatter Plot", "Vega2"] and set(kinds[1]) == {"Run History Line Plot"}
    assert kinds[2] == ["Scatter Plot", "Scatter Plot"] and kinds[3] == ["Media Browser"]


def test_it_shows_every_metric_and_nothing_that_is_not_logged() -> None:
    sent = definition(workspace(entity="me", project="metalora"))
    axes = [axis for key in ("xAxis", "yAxis", "zAxis") for axis in values(sent, key)]
    shown = {name for metrics in values(sent, "metrics") for name in metrics}
    shown |= {axis.removeprefix("summary:") for axis in axes if str(axis).startswith("summary:")}
    known = {metric.name for metric in METRICS}
    assert shown <= known and known - shown <= {"eval/clip_i", "train/grad_norm_rows"}
    assert values(sent, "mediaKeys") == [[SAMPLES]] and TABLE in json.dumps(sent)
    assert {axis for axis in axes if str(axis).startswith("config:")} == {"config:rank.value"}


def test_without_a_key_the_definition_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr("metalora.tracking.wandb_run._in_netrc", lambda _: False)
    main(["dashboard", "logger=wandb", "logger.project=faces", f"out={tmp_path}/workspace.json"])
    assert json.loads((tmp_path / "workspace.json").read_text())["project"] == "faces"
    assert "definition:" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["dashboard", f"out={tmp_path}/other.json"])
    assert "key: logger" in capsys.readouterr().err
