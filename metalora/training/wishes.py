"""Checkpoints that others wait for: a run of 750 iterations also writes the LoRAs at 250 that a waiting job wants.

A wish is an empty file beside the lease of the trajectory's folder. Where it comes too late, whoever wished
trains those iterations anew.
"""

from collections.abc import Iterable
from pathlib import Path

_PREFIX = "wish-"


class Wishes:
    """The iteration counts at which somebody wants LoRAs of the trajectory in `out`."""

    def __init__(self, out: Path) -> None:
        self._folder = out / ".lease"

    def ask(self, iterations: Iterable[int]) -> None:
        """Wish for LoRAs at these iterations."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for count in iterations:
            (self._folder / f"{_PREFIX}{count:06d}").touch()

    def drop(self, iterations: Iterable[int]) -> None:
        """They are there, or somebody makes them."""
        for count in iterations:
            (self._folder / f"{_PREFIX}{count:06d}").unlink(missing_ok=True)

    def has(self, iterations: int) -> bool:
        """Whether somebody wishes for LoRAs at exactly this point."""
        return (self._folder / f"{_PREFIX}{iterations:06d}").exists()
