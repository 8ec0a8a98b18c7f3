"""A sweep with a memory: what is done is not launched again, what fails stops nothing, what is lost comes again."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from test_conf import composed

from metalora.cli import explained, main
from metalora.core.errors import UserError
from metalora.core.lease import Lease
from metalora.running.artifact import LEASE
from metalora.running.cells import Cell, cells_of
from metalora.running.setting import Setting
from metalora.running.shards import shard_of
from metalora.running.sweep import Sweep, run_cell
from metalora.tasks.status import lines_of

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


def test_cells_whose_worker_was_lost_are_launched_again(tmp_path: Path) -> None:
    """A launcher that ends with every cell: four cells need four launches, however few a cell may have."""
    launched: list[int] = []

    def launch(cells: list[list[str]], first: int) -> None:
        launched.append(len(cells))
        work(cells[0], tmp_path)
        raise RuntimeError("a worker is gone")

    swept(tmp_path, 1, 2, 3, 4).run(launch, attempts=1)
    assert launched == [4, 3, 2, 1]
    assert set(standings(tmp_path).values()) == {"done"}


def work(words: list[str], outputs: Path) -> None:
    rank = int(words[0].split("=")[1])

    def make() -> Path:
        (outputs / f"made{rank}").touch()
        return outputs / f"made{rank}"

    run_cell(configured(outputs, rank), make, reason_of=explained)


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_cell_that_takes_its_worker_with_it_stops_no_other(
    tmp_path: Path, attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers at a time; the first cell kills its own, and the launcher then gives up with both."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    launched: list[list[str]] = []

    def launch(cells: list[list[str]], first: int) -> None:
        launched.append([words[0] for words in cells])
        for place, words in enumerate(cells):
            if words[0] == "rank=1":
                for other in cells[place : place + 2]:
                    begin_and_die(configured(tmp_path, int(other[0].split("=")[1])))
                raise RuntimeError("a worker is gone")
            work(words, tmp_path)

    with pytest.raises(SystemExit) as stop:
        swept(tmp_path, *range(1, 11)).run(launch, attempts=attempts)
    assert stop.value.code == 1
    states = standings(tmp_path)
    assert states.pop("rank=1") == "missing"
    if attempts == 1:  # who ran beside it had its only launch
        assert states.pop("rank=2") == "missing"
        assert [len(cells) for cells in launched] == [10, 8]
    else:
        pair = ["rank=1", "rank=2"]
        assert launched[1:] == [[f"rank={rank}" for rank in range(3, 11)], pair, ["rank=1"], ["rank=2"]]
    assert set(states.values()) == {"done"}


def begin_and_die(cfg: DictConfig) -> None:
    """What SIGKILL leaves: a lease that was taken and not given back."""
    folder = str(Cell.of(cfg).folder / LEASE)
    code = (
        "import os, sys; from metalora.core.lease import Lease; Lease(sys.argv[1]).acquire(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, folder], check=False).returncode == -signal.SIGKILL


def test_what_still_runs_is_not_launched_again(tmp_path: Path) -> None:
    """A launcher that gives up at the first lost job, while another one works on elsewhere."""
    launched: list[list[str]] = []
    others = []

    def launch(cells: list[list[str]], first: int) -> None:
        launched.append([words[0] for words in cells])
        if len(cells) == 1:
            return work(cells[0], tmp_path)
        ready = CONTEXT.Event()
        others.append(CONTEXT.Process(target=work_slowly, args=(str(tmp_path), ready)))
        others[0].start()
        assert ready.wait(300)
        begin_and_die(configured(tmp_path, 1))
        raise RuntimeError("a job is gone")

    swept(tmp_path, 1, 2).run(launch, attempts=3)
    others[0].join()
    assert launched == [["rank=1", "rank=2"], ["rank=1"]]


def work_slowly(outputs: str, ready: Any) -> None:
    def make() -> None:
        ready.set()
        time.sleep(2)

    run_cell(configured(Path(outputs), 2), make, reason_of=explained)


def test_a_launcher_that_begins_nothing_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launched: list[int] = []

    def launch(cells: list[list[str]], first: int) -> None:
        launched.append(len(cells))
        raise RuntimeError("the job was not taken\nno controller answers")

    with pytest.raises(SystemExit) as stop:
        swept(tmp_path, 1, 2).run(launch, attempts=3)
    assert stop.value.code == 2 and launched == [2]
    told = capsys.readouterr().err
    assert "has begun no cell; got RuntimeError: no controller answers; key: hydra.launcher" in told


def test_a_cell_whose_input_has_changed_is_launched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo, people = tmp_path / "me.png", tmp_path / "people"
    photo.write_text("one")
    (people / "ann").mkdir(parents=True)
    (people / "ann" / "1.png").write_text("photo")
    rendered = tmp_path / "out" / "data"
    values = {"image": "me.png", "people": {"root": str(people)}, "benchmark": {"root": "${paths.data}"}}
    cfg = OmegaConf.merge(configured(tmp_path / "out", 1), values, {"paths": {"data": str(rendered)}})
    assert isinstance(cfg, DictConfig)
    launched: list[int] = []

    def launch(cells: list[list[str]], first: int) -> None:
        launched.append(len(cells))
        made = tmp_path / "made"
        made.touch()
        rendered.mkdir(exist_ok=True)  # what the project renders for itself is no input
        run_cell(cfg, lambda: [made], reason_of=explained)

    def again() -> int:
        before = len(launched)
        Sweep([[["rank=1"]]], composed=lambda words: cfg, swept={"rank"}).run(launch, attempts=1)
        return len(launched) - before

    monkeypatch.chdir(tmp_path)
    assert [again(), again()] == [1, 0]
    photo.write_text("two")
    assert [again(), again()] == [1, 0]
    (people / "ann" / "2.png").write_text("another")
    assert [again(), again()] == [1, 0]
    (people / "ann" / ".lease").write_text("somebody looks")
    assert again() == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "me.png").write_text("three")
    monkeypatch.chdir(elsewhere)  # the same words mean another photo here
    assert [again(), again()] == [1, 0]


def test_what_is_done_is_found_in_milliseconds(tmp_path: Path) -> None:
    cfg = configured(tmp_path, 1)
    made = [tmp_path / f"lora{number}" for number in range(20)]
    for path in made:
        path.touch()
    run_cell(cfg, lambda: made, reason_of=explained)
    begun = time.process_time()
    for _ in range(75):
        assert Cell.of(cfg).is_kept()
    assert time.process_time() - begun < 1.5


def test_a_task_that_names_no_files_is_asked_again(tmp_path: Path) -> None:
    """It finds what is there by itself; nobody else can say whether it still is."""
    asked: list[int] = []

    def launch(cells: list[list[str]], first: int) -> None:
        run_cell(configured(tmp_path, 1), lambda: asked.append(1), reason_of=explained)

    for _ in range(2):
        swept(tmp_path, 1).run(launch, attempts=1)
    assert asked == [1, 1]
    assert standings(tmp_path) == {"rank=1": "done"}


@pytest.mark.parametrize("word", ["attempts=0", "attempts=few", "max_batch_size=a", "max_batch_size=-1"])
def test_a_sweeper_that_cannot_launch_is_one_line(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["meta-train", "-m", "class_noun=man,woman", f"hydra.sweeper.{word}"])
    key, _, value = word.partition("=")
    told = capsys.readouterr().err
    assert stop.value.code == 2 and f"expected 1 or more; got {value}; key: hydra.sweeper.{key}" in told
    assert told.count("\n") == 1


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
    assert ready.wait(300)
    standing = cell.standing()
    assert standing.state == "running" and f"process {process.pid}, since" in standing.text
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert cell.standing().state == "missing" and "lost" in cell.standing().text


def test_status_of_a_name_that_looks_like_a_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = configured(tmp_path, 1)
    cfg.name = "5"
    Cell.of(cfg, label="rank=1").write()
    main(["status", "name=5", f"paths.outputs={tmp_path}"])
    assert "5: 1 cells" in capsys.readouterr().out


def test_status_watches_until_every_cell_is_done_or_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [Cell.of(configured(tmp_path, rank), label=f"rank={rank}") for rank in (1, 2)]
    for cell in cells:
        cell.write()
    told: list[str] = []

    def work(seconds: float) -> None:
        assert seconds == 0.5
        told.append(capsys.readouterr().out)
        cells[len(told) - 1].done([tmp_path], read={}, seconds=1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metalora.tasks.status.time.sleep", work)
        main(["status", "watch=0.5", f"paths.outputs={tmp_path}"])
    assert ["2 missing" in told[0], "1 done, 0 running, 0 failed, 1 missing" in told[1]] == [True, True]
    assert "2 done" in capsys.readouterr().out and len(told) == 2
    for wrong in ("0", "soon", "true"):
        with pytest.raises(SystemExit) as stop:
            main(["status", f"watch={wrong}", f"paths.outputs={tmp_path}"])
        assert stop.value.code == 2 and "key: watch" in capsys.readouterr().err


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
    assert "uv pip install -e '.[" in capsys.readouterr().err


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
        process.join(300)
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
