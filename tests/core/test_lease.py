"""A lease has one owner at a time, whoever is killed, stopped or late, and whatever clocks say."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from metalora.core import lease
from metalora.core.errors import UserError
from metalora.core.lease import Lease, is_alive, latest, owner, silence

PROGRAM = """
import sys, time, pathlib
from metalora.core import lease
lease.os.fsync = lambda descriptor: None
folder, log, boot, hold, shift, rounds = sys.argv[1:]
if boot:
    lease.boot_id = lambda: boot  # another machine: its locks are not seen here
now = time.time
time.time = lambda: now() + float(shift)
for _ in range(int(rounds)):
    ours = lease.Lease(pathlib.Path(folder), what="test", beat=0.1, stale=1.0)
    ours.acquire()
    with open(log, "a") as file:
        file.write("in\\n")
    time.sleep(float(hold))
    with open(log, "a") as file:
        file.write("out\\n")
    ours.release()
"""


def started(folder: Path, log: Path, *, boot: str = "", hold: float = 60, shift: float = 0, rounds: int = 1) -> Any:
    words = [str(folder), str(log), boot, str(hold), str(shift), str(rounds)]
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *words])


def until(condition: Any, *, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def lines(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


@pytest.fixture(autouse=True)
def no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy disk, whose fsync may take longer than these tests' second of silence, is not what is tested."""
    monkeypatch.setattr(lease.os, "fsync", lambda descriptor: None)


@pytest.fixture
def owning(tmp_path: Path) -> Any:
    """Starts processes that hold the lease in tmp_path / "lease"; ends them."""
    processes = []

    def start(**options: Any) -> Any:
        log = tmp_path / f"log{len(processes)}"
        processes.append(started(tmp_path / "lease", log, **options))
        until(lambda: lines(log))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_the_thread_that_holds_it_may_take_it_again(tmp_path: Path) -> None:
    with Lease(tmp_path), Lease(tmp_path):
        found = owner(tmp_path)
        assert found is not None and found.pid == os.getpid() and not found.over and is_alive(tmp_path, found)
    found = owner(tmp_path)
    assert found is not None and found.over and is_alive(tmp_path, found) is False


def test_an_owner_killed_on_this_machine_is_followed_at_once(owning: Any, tmp_path: Path) -> None:
    process = owning()
    ours = Lease(tmp_path / "lease")  # with the 90 seconds of real life
    assert not ours.try_acquire()
    process.send_signal(signal.SIGKILL)
    process.wait()
    begun = time.monotonic()
    assert ours.acquire()
    assert time.monotonic() - begun < 30  # not 90
    ours.release()


def test_a_stopped_owner_on_this_machine_is_waited_for(owning: Any, tmp_path: Path) -> None:
    """A batch system stops jobs and lets them go on: two owners would be worse than waiting."""
    process = owning()
    process.send_signal(signal.SIGSTOP)
    ours = Lease(tmp_path / "lease", stale=0.3)
    end = time.monotonic() + 1.5
    assert not ours.acquire(enough=lambda: time.monotonic() > end)


@pytest.mark.parametrize("shift", [-86400, 0, 86400])
def test_an_owner_on_another_machine_lives_as_long_as_it_beats(owning: Any, tmp_path: Path, shift: float) -> None:
    process = owning(boot="another machine", shift=shift)
    ours = Lease(tmp_path / "lease", stale=1.0)
    end = time.monotonic() + 2.5
    assert not ours.acquire(enough=lambda: time.monotonic() > end)
    found = owner(tmp_path / "lease")
    assert found is not None and is_alive(tmp_path / "lease", found) is None
    assert silence(tmp_path / "lease") < 0.9
    process.kill()
    process.wait()
    begun = time.monotonic()
    assert ours.acquire()
    assert 0.7 < time.monotonic() - begun < 10
    ours.release()


def test_one_of_many_follows_a_dead_owner(owning: Any, tmp_path: Path) -> None:
    """Ten rounds of six processes, on "two machines", after a kill: in and out take strict turns."""
    process = owning(boot="one")
    log = tmp_path / "turns"
    crowd = [started(tmp_path / "lease", log, boot=boot, hold=0.01, rounds=10) for boot in ["one", "two", ""] * 2]
    time.sleep(0.5)
    process.kill()
    process.wait()
    try:
        assert [member.wait(timeout=100) for member in crowd] == [0] * 6
    finally:
        for member in crowd:
            member.kill()
    assert lines(log) == ["in", "out"] * 60


def test_many_killed_while_they_take_turns(tmp_path: Path) -> None:
    log = tmp_path / "turns"
    for _ in range(4):
        crowd = [started(tmp_path / "lease", log, hold=0.02, rounds=1000) for _ in range(2)]
        until(lambda: len(lines(log)) > 10)
        for member in crowd:
            member.send_signal(signal.SIGKILL)
        for member in crowd:
            member.wait()
        log.write_text("")
    with Lease(tmp_path / "lease"):
        pass


def test_who_was_taken_for_dead_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Lease(tmp_path / "lease", beat=0.05)
    ours.acquire()
    ours.check()
    number = latest(tmp_path / "lease")
    (tmp_path / "lease" / f"{number + 1:06d}").touch()  # what another machine does after 90 silent seconds
    until(lambda: lease._HELD[str(tmp_path / "lease")].lost.is_set())
    with pytest.raises(UserError, match="taken over"):
        ours.check()
    before = (tmp_path / "lease" / f"{number:06d}").read_bytes()
    ours.release()
    assert (tmp_path / "lease" / f"{number:06d}").read_bytes() == before


def test_who_wakes_too_late_does_not_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It saw number 1 free, slept while others had 2 to 9, and then makes number 2, which was cleaned away."""
    for number in (8, 9):
        (tmp_path / f"{number:06d}").touch()
    late = Lease(tmp_path)
    assert not late._take(2)
    assert latest(tmp_path) == 9 and not (tmp_path / "000002").exists()


def test_a_waiter_that_slept_does_not_count_its_sleep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole cluster paused for an hour: whoever wakes first must not take the others for dead."""
    process = started(tmp_path / "lease", tmp_path / "log", boot="another machine")
    try:
        until(lambda: lines(tmp_path / "log"))
        process.send_signal(signal.SIGSTOP)
        ours = Lease(tmp_path / "lease")
        assert not ours.try_acquire()
        clock = time.monotonic
        monkeypatch.setattr(lease.time, "monotonic", lambda: clock() + 3600)
        assert not ours.try_acquire()
        process.send_signal(signal.SIGCONT)
    finally:
        process.kill()
        process.wait()


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    code = (
        "import os, sys, time, pathlib\n"
        "from metalora.core.lease import Lease\n"
        "Lease(pathlib.Path(sys.argv[1])).acquire()\n"
        "child = os.fork()\n"
        "if child == 0:\n    time.sleep(300)\n    os._exit(0)\n"
        "print(child, flush=True)\n"
        "time.sleep(300)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        process.kill()
        process.wait()
        begun = time.monotonic()
        with Lease(tmp_path):
            assert time.monotonic() - begun < 30
    finally:
        os.kill(child, signal.SIGKILL)


def test_what_is_told_is_read(tmp_path: Path) -> None:
    with Lease(tmp_path, what="cell", beat=0.02):
        lease.tell("Stage 2 120/750")
        until(lambda: (found := owner(tmp_path)) is not None and found.told == "Stage 2 120/750")
