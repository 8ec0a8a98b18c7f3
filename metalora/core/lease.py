"""Who may write a folder: one owner among processes of several machines that share a file system.

An owner holds the highest numbered file of the lease's folder. It keeps a kernel lock on it, which tells the death of
an owner on this machine at once, and changes a counter in it every few seconds, which tells everybody else that it
lives. The next owner creates the next number (`O_EXCL`: one of many succeeds), so nobody ever removes or renames what
another holds. Clocks of two machines are never compared: a waiter watches the counter for a time of its own.
"""

import contextlib
import fcntl
import json
import os
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType

from metalora.core.errors import UserError

BEAT_SECONDS, STALE_SECONDS = 5.0, 90.0
"""The counter moves this often; an owner on another machine is dead when it has not moved for so long."""
_KEPT, _TEXT = 3, 160


@dataclass(frozen=True)
class Owner:
    """Who holds a lease, as its file says."""

    host: str
    pid: int
    since: float
    """Seconds of the owner's own clock, to be shown only."""
    what: str
    told: str
    """What it last said about its work."""
    boot: str
    locked: bool
    over: bool
    """It has given the lease back."""
    run: str = ""
    """Of which run of several processes it is the first."""


@dataclass
class _Held:
    number: int
    descriptor: int
    thread: int
    head: bytes
    count: int = 1
    beats: int = 0
    told: str = ""
    stop: threading.Event = field(default_factory=threading.Event)
    lost: threading.Event = field(default_factory=threading.Event)
    beating: threading.Thread | None = None


_HELD: dict[str, _Held] = {}
_GUARD = threading.Lock()


class Lease:
    """The right to write, held by one process at a time; the thread that holds it may take it again.

    Args:
        folder: of the lease's own files; it is made when needed.
        what: is done under it, for whoever waits.
        run: names the run of several processes that the owner is the first of, for the others of them.
        beat, stale: seconds; see the module.
    """

    def __init__(
        self,
        folder: Path,
        *,
        what: str = "",
        run: str = "",
        beat: float = BEAT_SECONDS,
        stale: float = STALE_SECONDS,
    ) -> None:
        self.folder, self.what, self.run, self.beat, self.stale = Path(folder), what, run, beat, stale
        self._key = os.path.abspath(folder)
        self._seen: tuple[int, bytes] = (0, b"")
        self._quiet, self._looked = 0.0, time.monotonic()

    def acquire(
        self, *, enough: Callable[[], bool] = lambda: False, waiting: Callable[[Owner], None] = lambda owner: None
    ) -> bool:
        """Wait until the lease is ours (True), or until `enough()`: what it is wanted for is there (False).

        Args:
            enough: asked while another owner is at work.
            waiting: told whom we wait for, once for each owner.
        """
        pause, told = 0.05, 0
        while not self.try_acquire():
            if enough():
                return False
            number = latest(self.folder)
            if number != told and (found := owner(self.folder)) is not None and not found.over:
                waiting(found)
                told = number
            time.sleep(pause)
            pause = min(2.0, 1.5 * pause, self.stale / 8)
        return True

    def try_acquire(self) -> bool:
        """Take the lease if nobody living has it. An owner on another machine is found dead only by trying on."""
        with _GUARD:
            held = _HELD.get(self._key)
            if held is not None:
                held.count += held.thread == threading.get_ident()
                return held.thread == threading.get_ident()
            self.folder.mkdir(parents=True, exist_ok=True)
            number = latest(self.folder)
            if number and not self._is_free(number):
                return False
            return self._take(number + 1)

    def _take(self, number: int) -> bool:
        path = self.folder / f"{number:06d}"
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        except FileExistsError:
            return False
        locked = _lock(descriptor)  # before there is a word in the file: nobody tries the lock of an empty one
        if latest(self.folder) > number:  # we slept, and others have come and gone
            path.unlink()
            os.close(descriptor)
            return False
        about = {"host": platform.node(), "pid": os.getpid(), "since": time.time(), "what": self.what, "run": self.run}
        head = json.dumps(about | {"boot": boot_id(), "locked": locked}).encode() + b"\n"
        held = _Held(number, descriptor, threading.get_ident(), head)
        _write(held)
        _HELD[self._key] = held
        held.beating = threading.Thread(target=self._keep, args=(held,), daemon=True)
        held.beating.start()
        for old in self.folder.iterdir():
            if old.name.isdigit() and int(old.name) <= number - _KEPT:
                old.unlink(missing_ok=True)
        return True

    def _keep(self, held: _Held) -> None:
        while not held.stop.wait(self.beat):
            with contextlib.suppress(OSError):  # a file server that is away for a moment
                if latest(self.folder) > held.number:  # we were asleep for too long, and taken for dead
                    held.lost.set()
                    return
                held.beats += 1
                _write(held)

    def _is_free(self, number: int) -> bool:
        """Whether the owner of a number has given it back or is dead."""
        try:
            content = (self.folder / f"{number:06d}").read_bytes()
        except OSError:
            return False
        now = time.monotonic()
        # A waiter that slept itself counts no more than a look's usual distance: owners may have slept with it.
        gap = min(now - self._looked, 4.0, self.stale / 4)
        self._quiet = self._quiet + gap if (number, content) == self._seen else 0.0
        self._seen, self._looked = (number, content), now
        found = _parsed(content)
        if found is not None and found.over:
            return True
        if found is not None and found.boot == boot_id() and found.locked:
            return not _lock_is_held(self.folder / f"{number:06d}")
        return self._quiet >= self.stale

    def release(self) -> None:
        """Give it back; what was taken several times has to be given back as often."""
        with _GUARD:
            held = _HELD[self._key]
            held.count -= 1
            if held.count:
                return
            del _HELD[self._key]
        held.stop.set()
        if held.beating is not None:
            held.beating.join()
        with contextlib.suppress(OSError):
            if not held.lost.is_set():
                _write(held, over=True)
        os.close(held.descriptor)

    def check(self) -> None:
        """Raise UserError when another has taken this process for dead and works in its place."""
        held = _HELD.get(self._key)
        if held is not None and held.lost.is_set():
            raise UserError(
                f"another process has taken over {self.folder.parent}, as this one did not answer",
                expected=f"a sign of life every {self.stale:g} seconds",
                key="run the command again",
            )

    def __enter__(self) -> "Lease":
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def tell(text: str) -> None:
    """Let whoever reads this process's leases know how far it is; written with the next beat."""
    for held in list(_HELD.values()):
        held.told = text


def owner(folder: Path) -> Owner | None:
    """Who holds, or held last, the lease in a folder; None when there never was anybody."""
    number = latest(folder)
    try:
        return _parsed((folder / f"{number:06d}").read_bytes()) if number else None
    except OSError:
        return None


def is_alive(folder: Path, found: Owner) -> bool | None:
    """Whether an owner lives, as far as this machine can tell at once; None: it is on another one."""
    if found.over:
        return False
    if found.boot == boot_id() and found.locked:
        return _lock_is_held(folder / f"{latest(folder):06d}")
    return None


def silence(folder: Path) -> float:
    """Seconds since the owner's last sign of life, by the clock of the file system that both write to."""
    beat = (folder / f"{latest(folder):06d}").stat().st_mtime
    probe = folder / f".{platform.node()}-{os.getpid()}"
    probe.touch()
    try:
        return max(0.0, probe.stat().st_mtime - beat)
    finally:
        probe.unlink(missing_ok=True)


def latest(folder: Path) -> int:
    """The highest number in a lease's folder, 0 when there is none."""
    try:
        return max((int(name) for name in os.listdir(folder) if name.isdigit()), default=0)
    except FileNotFoundError:
        return 0


@cache
def boot_id() -> str:
    """Names the running kernel: processes that share it share its locks, in containers too."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()


def _write(held: _Held, *, over: bool = False) -> None:
    state = f"{'over' if over else 'beat'} {held.beats:012d}\n".encode()
    text = held.told.replace("\n", " ").encode()[:_TEXT].ljust(_TEXT) + b"\n"
    os.pwrite(held.descriptor, state + text + held.head, 0)
    os.fsync(held.descriptor)


def _parsed(content: bytes) -> Owner | None:
    try:
        state, told, about = content.split(b"\n")[:3]
        values = json.loads(about)
        return Owner(told=told.decode(errors="ignore").strip(), over=state.startswith(b"over"), **values)
    except (ValueError, TypeError):
        return None


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # a file system without such locks
        return False
    return True


def _lock_is_held(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return True  # an older number, already gone: look again
    try:
        return not _lock(descriptor)
    finally:
        os.close(descriptor)


def _forget() -> None:
    """A forked child owns nothing, and must not keep its parent's locks alive."""
    global _GUARD
    _GUARD = threading.Lock()
    for held in _HELD.values():
        os.close(held.descriptor)
    _HELD.clear()


os.register_at_fork(after_in_child=_forget)
