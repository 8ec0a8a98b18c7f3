"""Lightning's side of a tracker, apart from it: whoever trains nothing does not wait for Lightning's import."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import Logger

from metalora.tracking.tracker import NAMES, Tracker


class Forward(Logger):
    """Tells a tracker what Lightning logs. Hyperparameters would name people: they stay here."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        self._tracker = tracker

    @property
    def name(self) -> str:
        """Asked for by Lightning."""
        return "metalora"

    @property
    def version(self) -> str:
        """Asked for by Lightning."""
        return "0"

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """Nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Numbers that have a name; Lightning adds its own `epoch`, which says nothing here."""
        known = {name: value for name, value in metrics.items() if name in NAMES}
        if known:
            self._tracker.scalars(known, step=step or 0)
