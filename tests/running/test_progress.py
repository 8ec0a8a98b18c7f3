"""The live view in a terminal, plain lines elsewhere; speed and time left are measured."""

import io
import os
import re
import threading
import time

import pytest
from terminal import CONTROL, open_terminal

from metalora.core.notice import notice
from metalora.running import progress
from metalora.running.pace import Pace, spoken
from metalora.running.progress import Board


class Terminal:
    """A terminal in this process."""

    def __init__(self) -> None:
        self._person, program = open_terminal()
        self.stream = os.fdopen(program, "w")
        self._parts = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                self._parts += os.read(self._person, 65536)
            except OSError:
                return

    def raw(self) -> str:
        """Everything that was written; closes it."""
        self.stream.close()
        self._reader.join(60)
        return bytes(self._parts).decode()


def work(board: Board) -> None:
    board.finish("prepare")
    board.expect(3)
    for done in (10, 20, 30):
        board.update("meta-train", "Stage 1, bucket 3/10, warm-up, 50 people", done, 100)
        board.update("lora", "Stage 2, lora rank 1, 16 people", 3 * done, 100)
        time.sleep(0.3)
    board.scores("last scores: lora rank 1, 5 iterations: R-FaceSim 12.3, CLIP-T 45.6")
    board.finish("lora")
    board.update("lora", "Stage 2, lora rank 1, 16 people", 99, 100)  # a late word from a worker
    notice("a line from below")
    time.sleep(1.5)  # several refreshes


def test_a_terminal_gets_one_live_view(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    terminal = Terminal()
    with Board(stream=terminal.stream) as board:
        assert board.live
        work(board)
    raw = terminal.raw()
    text = CONTROL.sub("", raw)
    assert "Stage 1, bucket 3/10, warm-up, 50 people" in text and "Stage 2, lora rank 1, 16 people" in text
    assert "━" in text and "30/100" in text and re.search(r"\d+\.\d it/s", text) and re.search(r"\d s left", text)
    assert "1 of 3 jobs done" in text and "R-FaceSim 12.3, CLIP-T 45.6" in text
    assert "a line from below" in text and "\x1b[" in raw
    last = text[text.rindex("1 of 3 jobs done") - 300 :]
    assert "Stage 2" not in last  # a finished job has left


@pytest.mark.parametrize(("name", "value"), [("CI", "true"), ("TERM", "dumb")])
def test_ci_and_dumb_terminals_get_plain_lines(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv(name, value)
    terminal = Terminal()
    with Board(stream=terminal.stream) as board:
        assert not board.live
        work(board)
    assert "\x1b" not in terminal.raw()


def test_a_log_file_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    with Board(stream=stream) as board:  # type: ignore[arg-type]
        for done in range(1, 1201):  # ten per second, two minutes
            clock[0] += 0.1
            board.update("meta-train", f"Stage 1, bucket {1 + done // 601}/2, Meta-Down, 4 people", done, 1200)
    lines = stream.getvalue().splitlines()
    assert 5 <= len(lines) <= 7, lines
    assert lines[0] == "meta-train: Stage 1, bucket 1/2, Meta-Down, 4 people 1/1200"
    assert lines[1] == "meta-train: Stage 1, bucket 1/2, Meta-Down, 4 people 301/1200, 10.0 it/s, 1 min 30 s left"
    assert any("bucket 2/2" in line for line in lines)
    assert lines[-1] == "meta-train: Stage 1, bucket 2/2, Meta-Down, 4 people 1200/1200, 10.0 it/s"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f━]", stream.getvalue())


def test_speed_counts_the_last_moments_and_starts_afresh_with_a_stage() -> None:
    clock = [0.0]
    pace = Pace(clock=lambda: clock[0])

    def move(seconds: float, stage: str, done: int, total: int = 1000) -> None:
        clock[0] += seconds
        pace.move(stage, done, total)

    move(0, "encode", 1, 4)
    move(1, "Stage 1, bucket 1/2, warm-up", 1)
    assert pace.speed == "" and pace.seconds_left is None
    move(10, "Stage 1, bucket 1/2, Meta-Down", 101)
    assert pace.speed == "10.0 it/s" and pace.seconds_left == pytest.approx(89.9)
    for step in range(1, 40):
        move(4, "Stage 1, bucket 2/2, warm-up", 101 + step)
    assert pace.speed == "4.0 s/it"
    assert [spoken(seconds) for seconds in (45, 200, 7500)] == ["45 s", "3 min 20 s", "2 h 5 min"]
