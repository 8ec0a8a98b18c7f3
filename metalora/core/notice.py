"""Lines for whoever sits before the terminal, from code that does not know whether there is one."""

import contextlib
import sys
from collections.abc import Callable, Iterator

_EARS: list[Callable[[str], None]] = []


def notice(text: str) -> None:
    """Tell one line to the innermost listener; without one, to stderr."""
    if _EARS:
        _EARS[-1](text)
    else:
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def heard_by(ear: Callable[[str], None]) -> Iterator[None]:
    """Let `ear` have every notice inside the block."""
    _EARS.append(ear)
    try:
        yield
    finally:
        _EARS.remove(ear)
