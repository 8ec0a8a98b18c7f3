"""The real command line with the launchers that need no cluster, and a task so light that its processes start at once:
one cell always takes its worker with it, one does so the first time, one waits for Ctrl-C."""

import os
import sys
from collections import Counter
from pathlib import Path

import pytest
from terminal import Command

from metalora.running.cells import cells_of

TASK = r"""
import os, signal, time
from pathlib import Path

from metalora.running.cells import Cell
from metalora.running.progress import Board

def run(cfg):
    log = Path(cfg.out)
    try:
        Board().reporter("light")("work", 1, 1)
        with log.open("a") as file:
            file.write(f"{cfg.seed}\n")
        if cfg.seed == 0 or cfg.seed == 1 and Cell.of(cfg).turns() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(cfg.seconds)
    except KeyboardInterrupt:
        time.sleep(cfg.seed)
        log.with_name(f"saved{cfg.seed}").touch()
        raise
    made = log.with_name(f"made{cfg.seed}")
    made.touch()
    return made
"""
CONFIGURATION = """
# @package _global_
task: light
photo: null
seconds: 0.5
"""
LAUNCHERS = {
    "basic": ("metalora_cells", []),
    "workers": ("hydra_joblib_launcher", ["hydra.launcher.n_jobs=2"]),
    "local": ("hydra_submitit_launcher", []),
}


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that teaches every Python process the task."""
    folder = tmp_path_factory.mktemp("light")
    (folder / "sitecustomize.py").write_text(
        f"import metalora.tasks\nmetalora.tasks.__path__.append({str(folder)!r})\n"
    )
    (folder / "light.py").write_text(TASK)
    (folder / "task").mkdir()
    (folder / "task" / "light.yaml").write_text(CONFIGURATION.lstrip())
    return folder


def typed(light: Path, outputs: Path, launcher: str, *words: str, tty: bool = False) -> Command:
    plugin, own = LAUNCHERS[launcher]
    pytest.importorskip(f"hydra_plugins.{plugin}")
    command = [sys.executable, "-m", "metalora", "task=light", "-m", f"hydra.searchpath=[file://{light}]"]
    command += [f"hydra/launcher={launcher}", *own, f"out={outputs / 'log'}", *words]

    path = os.pathsep.join([str(light), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = {"METALORA_OUTPUTS": str(outputs), "PYTHONPATH": path, "TERM": "xterm-256color", "CI": ""}
    return Command(command, environment=environment, tty=tty)


def states(outputs: Path) -> dict[str, str]:
    return {cell.label: cell.standing().state for cell in cells_of(outputs / "default")}


def test_a_sweep_typed_again_launches_what_reads_something_else_now(light: Path, tmp_path: Path) -> None:
    photo, begun = tmp_path / "me.png", []
    for content in ("one", "one", "two", "two"):
        if not photo.exists() or photo.read_text() != content:
            photo.write_text(content)
        sweep = typed(light, tmp_path, "basic", "seed=2,3", "seconds=0", f"photo={photo}")
        assert sweep.ended(seconds=300) == 0, sweep.text
        begun.append(len((tmp_path / "log").read_text().split()))
    assert begun == [2, 2, 4, 4]


def test_a_cell_that_takes_its_worker_with_it_stops_no_other(light: Path, tmp_path: Path) -> None:
    sweep = typed(light, tmp_path, "workers", "seed=0,1,2,3,4")
    assert sweep.ended(seconds=300) == 1, sweep.text
    assert states(tmp_path) == {"seed=0": "missing"} | {f"seed={seed}": "done" for seed in (1, 2, 3, 4)}, sweep.text
    turns = {cell.label: cell.turns() for cell in cells_of(tmp_path / "default")}
    assert turns["seed=0"] == 3  # a turn may end before its line of the log, with the worker of seed=1
    assert "seed=3: light: work 1/1" in sweep.text  # of cells side by side, each line says whose it is
    assert "Traceback" not in sweep.text


def test_a_lost_process_of_stage_1_ends_its_cell_not_the_sweep(light: Path, tmp_path: Path) -> None:
    """Who trains in several processes ends its own when one of them is lost (`metalora.training.launcher`)."""
    words = ["seed=0,1,2", "trainer.devices=2", "hydra.sweeper.attempts=2"]
    sweep = typed(light, tmp_path, "basic", *words)
    assert sweep.ended(seconds=300) == 1, sweep.text
    assert states(tmp_path) == {"seed=0": "missing", "seed=1": "done", "seed=2": "done"}, sweep.text
    assert Counter((tmp_path / "log").read_text().split()) == {"0": 2, "1": 2, "2": 1}


def test_a_lost_job_of_submitit_makes_no_other_run_twice(light: Path, tmp_path: Path) -> None:
    sweep = typed(light, tmp_path, "local", "seed=1,2,3", "seconds=3")
    assert sweep.ended(seconds=300) == 0, sweep.text
    assert states(tmp_path) == {f"seed={seed}": "done" for seed in (1, 2, 3)}, sweep.text
    assert Counter((tmp_path / "log").read_text().split()) == {"1": 2, "2": 1, "3": 1}
    assert sweep.text.count("lost with the worker") == 1
    logs = [path.read_text() for path in tmp_path.rglob("*_log.err")]
    assert sum("seed=2: light: work 1/1" in log for log in logs) == 1, logs


@pytest.mark.parametrize(("tty", "workers"), [(True, 2), (False, 4)])
def test_ctrl_c_lets_the_workers_of_joblib_save(tty: bool, workers: int, light: Path, tmp_path: Path) -> None:
    """One takes longer to save. Of two workers both are busy, and a third cell waits; of four, two are idle."""
    seeds = "seed=2,3,5" if workers == 2 else "seed=2,3"
    sweep = typed(light, tmp_path, "workers", seeds, "seconds=100", f"hydra.launcher.n_jobs={workers}", tty=tty)
    sweep.until(lambda: (tmp_path / "log").exists() and len((tmp_path / "log").read_text().split()) == 2, seconds=300)
    sweep.ctrl_c()
    assert sweep.ended(seconds=300) == 130, sweep.text
    assert "the workers save what they train; Ctrl-C again stops now" in sweep.text
    assert {path.name for path in tmp_path.glob("saved*")} == {"saved2", "saved3"}, sweep.text
    assert sorted((tmp_path / "log").read_text().split()) == ["2", "3"]
    assert "Traceback" not in sweep.text
