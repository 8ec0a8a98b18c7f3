"""One run of a task as a dashboard sees it: numbers, tables, grids, and what was made from what, by hash alone.

Whatever a dashboard does wrong is told once and harms no run: its numbers stand in the CSV files as well.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from metalora.core.metric_names import METRICS
from metalora.core.notice import notice

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

Say = Callable[[str], None]
NAMES = frozenset(metric.name for metric in METRICS)


@dataclass(frozen=True)
class Thing:
    """Something that a run used or made, told by kind and hash: people, prior, lora or scores."""

    kind: str
    digest: str
    facts: tuple[tuple[str, str | int | float], ...] = ()
    """Numbers and words of the configuration, e.g. iterations; never a name of a person or file."""


def digest_of(hashes: Iterable[str]) -> str:
    """One hash of several, whatever their order."""
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()


class Sink(Protocol):
    """What a dashboard library offers."""

    def scalars(self, values: Mapping[str, float], *, step: int) -> None: ...

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None: ...

    def picture(self, name: str, path: Path, *, step: int) -> None: ...

    def used(self, thing: Thing) -> None: ...

    def made(self, thing: Thing, *, parents: Sequence[Thing]) -> None: ...

    def finish(self, *, status: int) -> None: ...


class Tracker(contextlib.AbstractContextManager["Tracker"]):
    """Guards a sink: no error of it leaves here, and after the first one it is left alone.

    Args:
        sink: where things go; None: nowhere.
        say: told one line if the sink fails.
    """

    def __init__(self, sink: Sink | None = None, *, say: Say = notice) -> None:
        self._sink, self._say = sink, say
        self._used: list[Thing] = []

    @property
    def logger(self) -> "Logger | None":
        """What Lightning logs to."""
        if self._sink is None:
            return None
        from metalora.tracking.lightning_logger import Forward

        return Forward(self)

    @property
    def listens(self) -> bool:
        """Whether anything is kept of what it is told."""
        return self._sink is not None

    def scalars(self, values: Mapping[str, float], *, step: int) -> None:
        """Numbers by the names of `core.metric_names`, at an iteration."""
        assert set(values) <= NAMES, f"metrics without a name: {set(values) - NAMES}"
        with self._guarded() as sink:
            sink.scalars(values, step=step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table of plain values."""
        with self._guarded() as sink:
            sink.table(name, columns, rows)

    def picture(self, name: str, path: Path, *, step: int) -> None:
        """A picture that lies in `path`; whether it is sent is the sink's to decide."""
        with self._guarded() as sink:
            sink.picture(name, path, step=step)

    def used(self, thing: Thing) -> None:
        """The run was made from this."""
        self._used.append(thing)
        with self._guarded() as sink:
            sink.used(thing)

    def made(self, thing: Thing) -> None:
        """The run made this, from all it used."""
        with self._guarded() as sink:
            sink.made(thing, parents=self._used)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._guarded() as sink:
            sink.finish(status=0 if value is None else 1)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[Any]:
        if self._sink is None:
            yield _NOWHERE
            return
        try:
            yield self._sink
        except Exception as error:
            self._sink = None
            lines = str(error).splitlines() or [""]
            self._say(f"logging ended, the run goes on: {type(error).__name__}: {lines[0]}")


class _Nowhere:
    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


_NOWHERE = _Nowhere()
