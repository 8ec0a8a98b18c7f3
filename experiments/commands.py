"""Run `metalora` commands from an experiment: quietly, one line each, and stop at the first that fails."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def metalora(words: Sequence[str], *, say: str) -> Path | None:
    """Run one command.

    Args:
        words: what stands after `metalora`.
        say: what it does, for the line that is printed.

    Returns:
        The prior that it trained or found, None when it says of none.

    Raises:
        SystemExit: it failed; the message is its last line.
    """
    done = subprocess.run([sys.executable, "-m", "metalora", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{say}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    print(f"done: {say}", flush=True)
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip().startswith("prior: ")]
    return Path(lines[-1].removeprefix("prior: ")) if lines else None
