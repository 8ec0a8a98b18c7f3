"""When another process of a Stage-1 run may join the first one, which may have to wait for another run's work."""

import time
from collections.abc import Callable
from pathlib import Path

from metalora.core.errors import UserError
from metalora.core.lease import STALE_SECONDS, Owner, is_alive, owner, silence
from metalora.training.ranks import KEYS, Ranks


def wait_for_first(folder: Path, *, ranks: Ranks, done: Callable[[], bool]) -> bool:
    """Wait until this run's first process owns the folder (True), or until everything is there (False).

    Whoever joined the process group before would wait in it for one that may never come.

    Args:
        folder: of the lease.
        done: whether everything wanted is there; the first process then does not train either.

    Raises:
        UserError: nobody has owned the folder for `ranks.timeout` seconds, so the first process is lost.
    """
    run, pause, since = ranks.run, 0.05, time.monotonic()
    while True:
        found = owner(folder)
        held = found is not None and _is_held(folder, found)
        if held and found is not None and found.run == run:
            return True
        if done():
            return False
        now = time.monotonic()
        if held:
            since = now
        elif now - since > ranks.timeout:
            raise UserError(
                f"process {ranks.rank} of {ranks.world} has lost the first one, which did not begin",
                expected=f"it at work in {folder.parent} within {ranks.timeout:g} s; its own message may say more",
                key=f"{KEYS}, trainer.rank_timeout",
            )
        time.sleep(pause)
        pause = min(2.0, 1.5 * pause)


def _is_held(folder: Path, found: Owner) -> bool:
    alive = is_alive(folder, found)
    return silence(folder) < STALE_SECONDS if alive is None else alive
