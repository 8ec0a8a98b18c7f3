"""`metalora study`, the real command: built, served, killed with SIGKILL in the middle of answering, served again."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from flow import Client
from made_up_images import CHECKPOINTS, PROMPTS

from metalora.reporting.user_study.store import Store


def words(made_up: Path, tmp_path: Path, action: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "metalora", "study", action, f"study={tmp_path / 'study.sqlite'}", *more]


def build(made_up: Path, tmp_path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    prompts = tmp_path / "prompts.yaml"
    kinds = {"multi": "frontal", "recontextualized": "recontextualized", "stylized": "stylized"}
    entries = [f"{{id: {i}, kind: {k}, text: x}}" for c, k in kinds.items() for i in sorted(PROMPTS[c])]
    prompts.write_text("prompts:\n" + "".join(f"  - {entry}\n" for entry in entries))
    benchmark = ["benchmark=meta_phd", f"benchmark.root={made_up / 'benchmark'}", f"benchmark.prompts={prompts}"]
    checkpoints = f"checkpoints={{{','.join(f'{k}: {v}' for k, v in CHECKPOINTS.items())}}}".replace(" ", "")
    command = words(made_up, tmp_path, "build", f"images={made_up / 'images'}", *benchmark, checkpoints, *more)
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


class Served:
    """`metalora study serve` as a process."""

    def __init__(self, made_up: Path, tmp_path: Path, *, port: int = 0) -> None:
        command = words(made_up, tmp_path, "serve", f"port={port}", "participants=3")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.said = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if line.startswith("each link"):
                break
        links = re.findall(r"participant \d+: http://127.0.0.1:(\d+)/p/(\S+)/", "".join(self.said))
        assert links, self.process.communicate()
        self.port = int(links[0][0])
        self.tokens = [token for _, token in links]

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.slow
def test_kill_minus_9_loses_no_acknowledged_answer_and_everybody_goes_on(made_up: Path, tmp_path: Path) -> None:
    """Three participants answer without pause; the server is killed under them twice, then they finish."""
    built = build(made_up, tmp_path, "participants=3")
    assert built.returncode == 0, built.stderr
    assert (
        "best of 5" in built.stderr + built.stdout
        and "32 questions, from the ffhq part 32" in built.stderr + built.stdout
    )
    store = Store(tmp_path / "study.sqlite")
    acknowledged: set[tuple[str, int, int]] = set()
    tokens: list[str] = []

    def answering(client: Client, limit: int, enough: threading.Event) -> None:
        try:
            client.agree()
            while (told := client.state()).get("question"):
                position, place = told["answered"], (told["answered"] * 7 + 3) % told["question"]["options"]
                if client.answer(position, place).status == 200:
                    acknowledged.add((client.token, position, place))
                if len(acknowledged) >= limit:
                    enough.set()
        except OSError:
            pass  # the server was killed

    for limit in (25, 90, 10_000):
        served = Served(made_up, tmp_path)
        assert tokens in ([], served.tokens)  # the same links as before
        tokens = served.tokens
        enough = threading.Event()
        people = [threading.Thread(target=answering, args=(Client(served.port, t), limit, enough)) for t in tokens]
        for person in people:
            person.start()
        if limit < 10_000:
            assert enough.wait(60)
            os.kill(served.process.pid, signal.SIGKILL)  # in the middle of the others' requests
        for person in people:
            person.join(60)
        served.kill()
        with store.connect() as connection:
            stored = set(
                connection.execute(
                    "SELECT token, position, place FROM answer JOIN participant ON participant.id = participant"
                )
            )
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert acknowledged <= stored
        assert len(stored - acknowledged) <= 2 * len(tokens)  # written, but killed before the word got out
        if limit < 10_000:
            assert limit <= len(stored) < 192
    assert len(stored) == 3 * 64


@pytest.mark.slow
def test_the_commands_in_turn(made_up: Path, tmp_path: Path) -> None:
    """Build, build again, simulate, analyse; another study does not take the place of one with answers."""

    def metalora(action: str, *more: str) -> subprocess.CompletedProcess[str]:
        command = words(made_up, tmp_path, action, *more)
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)

    small = [f"questions.{c}={{unsplash:2,ffhq:0}}" for c in ("multi", "single")]
    small += [f"questions.{c}={{unsplash:0,ffhq:2}}" for c in ("recontextualized", "stylized")]
    first = build(made_up, tmp_path, *small)
    assert first.returncode == 0, first.stderr
    tokens = [i.token for i in Store(tmp_path / "study.sqlite").invitations()]
    assert len(tokens) == 25
    again = build(made_up, tmp_path, *small)
    assert "there already" in again.stderr + again.stdout
    assert [i.token for i in Store(tmp_path / "study.sqlite").invitations()] == tokens
    nobody = metalora("analyse")
    assert nobody.returncode == 2 and "no answers at all" in nobody.stderr
    simulated = metalora("simulate", "participants=6", "preferences={meta_lora:0.8,pulid:0.2}")
    assert simulated.returncode == 0 and "6 SIMULATED" in simulated.stdout, simulated.stderr
    analysed = metalora("analyse", "simulated=true", "resamples=500")
    assert analysed.returncode == 0, analysed.stderr
    assert analysed.stdout.startswith("SIMULATED") and "Table 2" in analysed.stdout
    assert (tmp_path / "simulated_shares.csv").is_file() and not (tmp_path / "shares.csv").exists()
    other = build(made_up, tmp_path, *small, "seed=1")
    assert other.returncode == 2 and "is another one and has 48 answers" in other.stderr
    assert len(other.stderr.strip().splitlines()) == 1
