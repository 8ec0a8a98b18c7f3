"""A sweep with a memory: what is done is not launched again, what fails stops nothing, what is lost comes again."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from test_conf import composed

from metalora.cli import explained, main
from metalora.core.errors import UserError
from metalora.core.lease import Lease
from metalora.tasks.artifact import LEASE
from metalora.tasks.cells import Cell, cells_of
from metalora.tasks.setting import Setting
from metalora.tasks.shards import shard_of
from metalora.tasks.status import lines_of
from metalora.tasks.sweep import Sweep, run_cell

CONTEXT = multiprocessing.get_context("spawn")


def configured(outputs: Path, rank: int) -> DictConfig:
    return OmegaConf.create({"task": "personalize", "name": "n", "rank": rank, "paths": {"outputs": str(outputs)}})


def swept(outputs: Path, *ranks: int) -> Sweep:
    def one(words: list[str]) -> DictConfig:
        return configured(outputs, int(words[0].split("=")[1]))

    return Sweep([[[f"rank={rank}"] for rank in ranks]], composed=one, swept={"rank"})


def standings(outputs: Path) -> dict[str, str]:
    return {cell.label: cell.standing().state for cell in cells_of(outputs / "n")}


def test_a_sweep_goes_past_failures_and_launches_only_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launched: list[list[str]] = []
    broken = {2, 3}

    def work(rank: int) -> Path:
        if rank in broken:
            raise UserError("no such rank", got=str(rank), key="rank") if rank == 2 else ZeroDivisionError("by zero")
        (tmp_path / f"made{rank}").touch()
        return tmp_path / f"made{rank}"

    def launch(cells: list[list[str]], first: int) -> None:
        launched.append([words[0] for words in cells])
        for words in cells:
            rank = int(words[0].split("=")[1])
            run_cell(configured(tmp_path, rank), lambda rank=rank: work(rank), reason_of=explained)

    with pytest.raises(SystemExit) as stop:
        swept(tmp_path, 1, 2, 3, 4).run(launch, attempts=3)
    assert stop.value.code == 1
    assert launched == [["rank=1", "rank=2", "rank=3", "rank=4"]]  # who fails is not tried again at once
    assert standings(tmp_path) == {"rank=1": "done", "rank=2": "failed", "rank=3": "failed", "rank=4": "done"}
    told = "\n".join(lines_of("n", [(cell, cell.standing()) for cell in cells_of(tmp_path / "n")]))
    assert "4 cells, 2 done, 0 running, 2 failed, 0 missing" in told
    assert "rank=2: no such rank; got 2; key: rank" in told and "rank=3: ZeroDivisionError: by zero" in told
    assert "rank=1" not in told
    broken.remove(3)
    with pytest.raises(SystemExit) as stop:
        swept(tmp_path, 1, 2, 3, 4).run(launch, attempts=3)
    assert stop.value.code == 2  # bad input is all that is left, as in a command without -m
    assert launched.pop() == ["rank=2", "rank=3"]
    broken.clear()
    (tmp_path / "made4").unlink()  # what a done cell made is gone: it is done no more
    swept(tmp_path, 1, 2, 3, 4).run(launch, attempts=3)
    assert launched[1:] == [["rank=2", "rank=4"]]
    assert set(standings(tmp_path).values()) == {"done"}
    capsys.readouterr()
    swept(tmp_path, 1, 2, 3, 4).run(launch, attempts=3)
    assert len(launched) == 2
    assert "4 of 4 cells are done" in capsys.readouterr().err


def test_cells_whose_worker_was_lost_are_launched_again_but_not_for_ever(tmp_path: Path) -> None:
    launched: list[int] = []

    def launch(cells: list[list[str]], first: int) -> None:
        launched.append(len(cells))
        run_cell(configured(tmp_path, int(cells[0][0].split("=")[1])), lambda: None, reason_of=explained)
        raise RuntimeError("a worker is gone")

    with pytest.raises(SystemExit):
        swept(tmp_path, 1, 2, 3, 4).run(launch, attempts=3)
    assert launched == [4, 3, 2]
    assert sorted(standings(tmp_path).values()) == ["done", "done", "done", "missing"]


def test_a_cell_is_its_configuration_not_where_or_how_it_is_computed(tmp_path: Path) -> None:
    words = ["task=personalize", "image=me.jpg", "class_noun=woman"]
    one = Cell.of(composed(*words))
    alike = ["trainer.threads=1", "logger=wandb", f"paths.outputs={tmp_path}", "name=other", "debug=true"]
    assert all(Cell.of(composed(*words, word)).folder.name == one.folder.name for word in alike)
    others = ["rank=2", "method=lora", "seed=1", "iterations=[250]", "backbone.memory.quantization=int8"]
    names = {Cell.of(composed(*words, word)).folder.name for word in others}
    assert len(names | {one.folder.name}) == 6


def hold(folder: str, ready: Any) -> None:
    with Lease(Path(folder), what="cell"):
        ready.set()
        time.sleep(60)


def test_a_running_cell_names_its_owner_and_a_killed_one_is_missing(tmp_path: Path) -> None:
    cell = Cell.of(configured(tmp_path, 1), label="rank=1")
    cell.write()
    assert cell.standing().state == "missing"
    ready = CONTEXT.Event()
    process = CONTEXT.Process(target=hold, args=(str(cell.folder / LEASE), ready))
    process.start()
    assert ready.wait(60)
    standing = cell.standing()
    assert standing.state == "running" and f"process {process.pid}, since" in standing.text
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert cell.standing().state == "missing" and "lost" in cell.standing().text


def test_status_without_a_sweep_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["status", f"paths.outputs={tmp_path}"])
    assert stop.value.code == 2 and "there is no sweep" in capsys.readouterr().err
    Cell.of(configured(tmp_path, 1), label="rank=1").write()
    main(["status", f"paths.outputs={tmp_path}"])
    assert "n: 1 cells, 0 done, 0 running, 0 failed, 1 missing" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["slurm", "workers", "local", "ray_cluster"])
def test_a_launcher_that_is_not_installed_is_one_line(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        main(["personalize", "-m", "rank=1,2", f"hydra/launcher={name}"])
    assert stop.value.code == 2
    assert "pip install metalora[" in capsys.readouterr().err


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_every_person_is_in_one_part_in_the_cohorts_of_the_whole(parts: int) -> None:
    people = [object() for _ in range(40)]
    words = ["task=personalize", "image=x", "class_noun=man", "cohort_size=16"]
    dealt: list[Any] = []
    for part in range(1, parts + 1):
        shard = shard_of(Setting.of(composed(*words, f"shard={part}/{parts}")), people)  # type: ignore[arg-type]
        assert shard.label == f"-{part}of{parts}"
        dealt += shard.people
    assert dealt == people
    for wrong in ("0/2", "3/2", "1/4", "half"):
        with pytest.raises(UserError, match="key: shard"):
            shard_of(Setting.of(composed(*words, f"shard={wrong}")), people)  # type: ignore[arg-type]


def test_a_cell_has_no_second_worker(tmp_path: Path) -> None:
    """Two processes are given one cell: one works, the other waits and finds it done."""
    log = tmp_path / "log"
    pair = [CONTEXT.Process(target=cell_twice, args=(str(tmp_path), str(log))) for _ in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(60)
        assert process.exitcode == 0
    assert log.read_text() == "worked\n"
    facts = json.loads((Cell.of(configured(tmp_path, 1)).folder / "done.json").read_text())
    assert facts["seconds"] >= 0.5


def cell_twice(outputs: str, log: str) -> None:
    def work() -> None:
        with open(log, "a") as file:
            file.write("worked\n")
        time.sleep(0.5)

    run_cell(configured(Path(outputs), 1), work, reason_of=explained)
