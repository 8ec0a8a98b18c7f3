"""TensorBoard's event files: the same names; they stay in the run's folder."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metalora.core.errors import UserError, how_to_install
from metalora.tracking.tracker import Thing


def require_tensorboard() -> None:
    """Raise UserError when TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "TensorBoard is not installed", expected=how_to_install("tensorboard"), got="no tensorboard", key="logger"
        )


class TensorBoardRun:
    """One folder of event files.

    Args:
        folder: where they go.
        config: what the run was set to, shown as text.
    """

    def __init__(self, folder: Path, *, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))
        self._writer.add_text("config", _markdown(("key", "value"), sorted(config.items())))

    def scalars(self, values: Mapping[str, float], *, step: int) -> None:
        """A point of each curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """As text."""
        self._writer.add_text(name, _markdown(columns, rows))

    def picture(self, name: str, path: Path, *, step: int) -> None:
        """Into the event file, which nobody sends."""
        import numpy as np
        from PIL import Image

        self._writer.add_image(name, np.asarray(Image.open(path).convert("RGB")), step, dataformats="HWC")

    def used(self, thing: Thing) -> None:
        """As text."""
        self._writer.add_text(f"used/{thing.kind}", thing.digest)

    def made(self, thing: Thing, *, parents: Sequence[Thing]) -> None:
        """As text, with what it was made from."""
        lines = [("made", f"{thing.kind} {thing.digest}"), *((p.kind, p.digest) for p in parents), *thing.facts]
        self._writer.add_text(f"made/{thing.kind}", _markdown(("what", "hash"), lines))

    def finish(self, *, status: int) -> None:
        """Close the file."""
        self._writer.close()


def _markdown(columns: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
