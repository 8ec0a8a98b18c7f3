"""What every rival does: learn a file per person, then lend itself to the stock pipeline while images are drawn."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from metalora.core.contracts import TextEmbedding, TrainingPerson

Progress = Callable[[int, int], None]
"""Called with (people done, people)."""


@dataclass(frozen=True)
class Sitter:
    """One person as a rival meets them: the reference photo, and the same photo ready for training."""

    identity: str
    class_noun: str
    reference: Path
    training: TrainingPerson | None
    """None for a rival that trains nothing."""


class Rival(Protocol):
    """A method that is no LoRA. What it draws depends on the base and on the person's file alone."""

    name: str
    """The method's word in manifests, scores and tables."""
    iterations: int
    """Training steps per person; 0 for a tuning-free one."""

    @property
    def crops(self) -> bool | None:
        """Whether it trains on App. D's crops or on the whole photo; None: it trains nothing."""
        ...

    def settings(self) -> Mapping[str, Any]:
        """Everything that a person's file depends on beside base, photo and seed."""
        ...

    def learn(self, sitters: Sequence[Sitter], *, out: Path, progress: Progress) -> None:
        """Write `out/IDENTITY.safetensors` for everyone who has none yet."""
        ...

    def applied(self, path: Path) -> AbstractContextManager[None]:
        """While it lasts, the backbone's denoiser draws the person of a file; then it is again what it was."""
        ...

    def texts(self, path: Path, prompts: Collection[str], *, class_noun: str) -> dict[str, TextEmbedding] | None:
        """The prompts' embeddings where the person is in the words; None: the base's own."""
        ...


def file_of(out: Path, identity: str) -> Path:
    """Where a person's file lies."""
    return out / f"{identity}.safetensors"


def missing(sitters: Sequence[Sitter], *, out: Path) -> list[Sitter]:
    """Who has no file yet; a file is written whole or not at all."""
    return [sitter for sitter in sitters if not file_of(out, sitter.identity).is_file()]
