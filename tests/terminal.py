"""A command before a real terminal, or before a pipe, and Ctrl-C as a person types it."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def open_terminal(*, columns: int = 140) -> tuple[int, int]:
    """The two ends of a terminal: the person's, the program's."""
    person, program = pty.openpty()
    fcntl.ioctl(program, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    return person, program


class Command:
    """A running command whose output is collected.

    Args:
        tty: whether its input and output are a terminal, which then is its controlling one.
    """

    def __init__(self, words: Sequence[str], *, environment: Mapping[str, str], tty: bool) -> None:
        self._tty, self._parts = tty, bytearray()
        if tty:
            self._person, program = open_terminal()
        else:
            self._person, program = os.pipe()

        def begin() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job is born deaf to it
            if tty:
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            list(words),
            stdin=program if tty else subprocess.DEVNULL,
            stdout=program,
            stderr=program,
            env={**{k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}, **environment},
            start_new_session=True,
            preexec_fn=begin,
        )
        os.close(program)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                part = os.read(self._person, 65536)
            except OSError:  # a terminal whose program is gone
                return
            if not part:
                return
            self._parts += part

    @property
    def raw(self) -> str:
        """Everything written so far."""
        return bytes(self._parts).decode(errors="replace")

    @property
    def text(self) -> str:
        """The same without what moves the cursor."""
        return CONTROL.sub("", self.raw)

    def until(self, condition: Callable[[], object], *, seconds: float = 240) -> None:
        """Wait for something to be so while the command runs."""
        end = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None:
                self._reader.join(timeout=5)
                assert condition(), f"it ended with {self.process.returncode}: {self.text}"
                return
            assert time.monotonic() < end, f"waited too long: {self.text[-2000:]}"
            time.sleep(0.05)

    def ctrl_c(self) -> None:
        """The key in a terminal (every process before it gets the signal); the signal alone without one."""
        if self._tty:
            os.write(self._person, b"\x03")
        else:
            self.process.send_signal(signal.SIGINT)

    def ended(self, *, seconds: float = 240) -> int:
        """Its exit status."""
        try:
            status = self.process.wait(timeout=seconds)
        finally:
            self.close()
        return status

    def close(self) -> None:
        """End it if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(timeout=5)
