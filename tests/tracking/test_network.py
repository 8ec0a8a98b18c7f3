"""Whatever becomes of the connection, a run with `logger=wandb` ends normally and soon, with its own files whole."""

import csv
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_wandb import KEY, fake_wandb
from wandb_file import history

from metalora.running.setting import Setting
from metalora.tracking import wandb_run
from metalora.tracking.loggers import with_logger
from metalora.tracking.wandb_run import INIT_SECONDS, PROBE_SECONDS

FINISH_SECONDS, TEARDOWN_SECONDS, SPARE = 3, 2, 10.0
"""The last one is for a busy machine, on top of what the same takes offline or without wandb."""
RUN = """
import sys, time
from pathlib import Path
sys.path.insert(0, {helpers!r})
from training_runs import stage2
from metalora.backbones.flux import load_flux
from metalora.tracking import wandb_run
from metalora.tracking.loggers import tracked, with_logger
from metalora.running.setting import Setting
from metalora.training.speed import Speed
import torch, wandb

torch.set_num_threads(1)
wandb_run.INIT_SECONDS = {init}
backbone, out = load_flux(Path({flux!r}), name="tiny"), Path({out!r})
logger = dict(name="wandb", project="p", entity=None, group="g", mode="online", upload_images=False,
              finish_seconds={finish})

def run(what, folder, wait=lambda: None, **changes):
    begin = time.monotonic()
    setting = with_logger(Setting({{"logger": logger | changes}}), say=print)
    with tracked(setting, task="personalize", digest="abc", folder=folder / "log", say=print) as tracker:
        print(what, "opened", round(time.monotonic() - begin, 1), flush=True)
        wait()
        begin = time.monotonic()
        stage2(backbone, folder, people=2, iterations=[20], log_every=1, logger=tracker.logger, callbacks=[Speed()])
        print(what, "trained", round(time.monotonic() - begin, 1), flush=True)
        print(what, "listens", int(tracker.listens), flush=True)
        begin = time.monotonic()
    print(what, "ended", round(time.monotonic() - begin, 1), flush=True)

run("first", out / "first", name="csv")  # which also warms up
run("offline", out / "offline", mode="offline")
run("online", out / "online", wait=sys.stdin.readline)
run("csv", out / "csv", name="csv")
"""
WORKER = """
import os, signal, sys
from pathlib import Path
from metalora.tracking.loggers import tracked
from metalora.running.setting import Setting

logger = dict(name="wandb", project="p", entity=None, group="g", mode="offline", upload_images=False, finish_seconds=3)
with tracked(Setting({"logger": logger}), task="personalize", digest="abc", folder=Path(sys.argv[1])) as tracker:
    tracker.scalars({"train/loss": 1.0}, step=1)
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    print("listens", int(tracker.listens))
"""
WORKERS = """
import os, subprocess, sys, wandb

wandb.setup()
assert "WANDB_SERVICE" in os.environ
for way in ("kill", "end"):
    subprocess.run([sys.executable, "-c", {worker!r}, {folder!r}, way])
"""


@pytest.mark.parametrize(
    ("way", "told"), [("refuse", "cannot be reached"), ("hang", "cannot be reached"), ("500", "the server answers 500")]
)
def test_a_server_that_is_not_there_is_found_out_once_and_soon(
    way: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with fake_wandb(way) as server:
        settings = SimpleNamespace(api_key=KEY, identity_token_file=None, base_url=server.url)  # read once a process
        monkeypatch.setattr("wandb.setup", lambda: SimpleNamespace(settings=settings))
        monkeypatch.setattr(wandb_run, "_TOLD", set())
        begin = time.monotonic()
        for _ in range(2):
            logger = {"name": "wandb", "mode": "online", "group": "g"}
            assert with_logger(Setting({"logger": logger}), say=said.append)["logger.mode"] == "offline"
        assert time.monotonic() - begin < PROBE_SECONDS + 2
    (line,) = said
    assert told in line and "wandb sync" in line


def test_a_name_that_is_looked_up_for_long_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: over.wait(60))  # no time-out of a connection bounds it
    begin = time.monotonic()
    told = wandb_run._unreachable("http://slow.name.example")
    assert time.monotonic() - begin < PROBE_SECONDS + 2
    assert told is not None and "cannot be reached (no answer within 3 s)" in told
    over.set()


@pytest.mark.slow
def test_a_killed_workers_run_is_taken_up_by_another_worker(tmp_path: Path) -> None:
    """Also where somebody has left a wandb process in the environment, in which the killed one's run stays open."""
    code = WORKERS.format(worker=WORKER, folder=str(tmp_path))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert "listens 1" in run.stdout and "ServerResponseError" not in run.stdout + run.stderr, run.stdout + run.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "then", "told"),
    [("healthy", None, "this run is kept offline"), ("opens", "hang", "run: http"), ("opens", "500", "run: http")],
)
def test_no_server_stops_or_slows_a_run(
    way: str, then: str | None, told: str, tiny_flux_dir: Path, tmp_path: Path
) -> None:
    init = INIT_SECONDS if then is None else 120.0  # a busy machine may take its time to answer
    helpers = str(Path(__file__).parents[1] / "training")
    code = RUN.format(helpers=helpers, flux=str(tiny_flux_dir), out=str(tmp_path), init=init, finish=FINISH_SECONDS)
    with fake_wandb(way) as server:
        environment = os.environ | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        ) as run:
            assert run.stdin is not None and run.stdout is not None
            lines = []
            for line in run.stdout:
                lines.append(line.strip())
                if line.startswith("online opened"):
                    server.way = then or server.way
                    run.stdin.write("\n")
                    run.stdin.flush()
            assert run.wait(timeout=60) == 0, lines
        text = "\n".join(lines)
        assert told in text and "Traceback" not in text, text
    words = [line.split() for line in lines]
    found = {
        (line[0], line[1]): float(line[2]) for line in words if line[1] in ("opened", "trained", "listens", "ended")
    }
    assert found["online", "listens"] == found["offline", "listens"] == 1, text
    longest = PROBE_SECONDS + init + TEARDOWN_SECONDS
    assert found["online", "opened"] < longest + found["offline", "opened"] + SPARE, text
    plain = max(found["first", "trained"], found["csv", "trained"])
    assert found["online", "trained"] < 2 * plain + 5, text  # a wait of 0.3 s per row would be seen
    assert found["online", "ended"] < FINISH_SECONDS + found["offline", "ended"] + SPARE, text
    for name in ("online", "csv"):
        (cohort,) = (tmp_path / name).glob("cohort-*")
        with (cohort / "metrics.csv").open() as file:
            assert [int(row["iteration"]) for row in csv.DictReader(file)] == list(range(1, 21))
    assert list((tmp_path / "online").glob("p*/lora-000020.safetensors"))
    # Nothing is lost: `wandb sync` sends it later.
    kept = [row for log in (tmp_path / "online" / "log").rglob("*.wandb") for row in history(log)]
    assert {row["iteration"] for row in kept} == set(range(1, 21)), text
