"""Whatever becomes of the connection, a run with `logger=wandb` ends normally and soon, with its own files whole."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_wandb import KEY, fake_wandb

from metalora.tasks import wandb_run
from metalora.tasks.loggers import with_logger
from metalora.tasks.setting import Setting
from metalora.tasks.wandb_run import INIT_SECONDS, PROBE_SECONDS

FINISH_SECONDS = 3
RUN = """
import sys, time
from pathlib import Path
sys.path.insert(0, {helpers!r})
from training_runs import stage2
from metalora.backbones.flux import load_flux
from metalora.tasks import wandb_run
from metalora.tasks.loggers import tracked, with_logger
from metalora.tasks.setting import Setting
from metalora.training.speed import Speed
import torch, wandb

torch.set_num_threads(1)
wandb_run.INIT_SECONDS = {init}
backbone, out = load_flux(Path({flux!r}), name="tiny"), Path({out!r})
logger = dict(name="wandb", project="p", entity=None, group="g", mode="online", upload_images=False,
              finish_seconds={finish})
begin = time.monotonic()
setting = with_logger(Setting({{"logger": logger}}), say=print)
with tracked(setting, task="personalize", digest="abc", folder=out / "log", say=print) as tracker:
    opened = time.monotonic()
    print("opened", round(opened - begin, 1), flush=True)
    sys.stdin.readline()
    trained = time.monotonic()
    stage2(backbone, out, people=2, iterations=[20], log_every=1, logger=tracker.logger, callbacks=[Speed()])
    print("trained", round(time.monotonic() - trained, 1), flush=True)
    ending = time.monotonic()
print("ended", round(time.monotonic() - ending, 1), flush=True)
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "then", "told", "opening"),
    [
        ("healthy", None, "this run is kept offline", PROBE_SECONDS + INIT_SECONDS),
        ("opens", "hang", "run: http", PROBE_SECONDS + 120.0),
        ("opens", "500", "run: http", PROBE_SECONDS + 120.0),
    ],
)
def test_no_server_stops_or_slows_a_run(
    way: str, then: str | None, told: str, opening: float, tiny_flux_dir: Path, tmp_path: Path
) -> None:
    init = INIT_SECONDS if then is None else 120.0  # a busy machine starts wandb's own process slowly
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
                if line.startswith("opened"):
                    server.way = then or server.way
                    run.stdin.write("\n")
                    run.stdin.flush()
            assert run.wait(timeout=60) == 0, lines
        text = "\n".join(lines)
        assert told in text and "Traceback" not in text, text
        told_times = [line.split() for line in lines if line.startswith(("opened ", "trained ", "ended "))]
        seconds = {name: float(value) for name, value in told_times}
        spare = 20.0
        assert seconds["opened"] < opening + spare, text
        assert seconds["ended"] < FINISH_SECONDS + spare, text
    (cohort,) = tmp_path.glob("cohort-*")
    with (cohort / "metrics.csv").open() as file:
        assert [int(row["iteration"]) for row in csv.DictReader(file)] == list(range(1, 21))
    assert list(tmp_path.glob("p*/lora-000020.safetensors"))
    assert list((tmp_path / "log").rglob("*.wandb"))  # nothing is lost: `wandb sync` sends it later
