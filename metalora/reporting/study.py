"""Everything a report shows, averaged once from a table of scores."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from typing import TYPE_CHECKING, Any

from metalora.core.metrics import PairedDifference, StepsToMatch
from metalora.core.plain_yaml import read_yaml
from metalora.evaluation import curves
from metalora.evaluation.curves import Bounds, Cell, CellKey
from metalora.evaluation.score_table import BASE, PHOTO_METHODS
from metalora.reporting import look

if TYPE_CHECKING:
    import pandas as pd

METHODS = ("lora", "lora_aug", "meta_lora")
"""In the order in which figures and tables list them."""
TARGET = CellKey("lora_aug", 1, 625)
"""What Meta-LoRA is measured against: the paper's LoRA + aug (appendix K)."""


@dataclass(frozen=True)
class Study:
    """A table of scores and how it came to be.

    Args:
        scores: as `evaluation.score_table.read_scores` returns it; cells may be missing, the report shows what is
            there. Untouched bases that the LoRA methods do not stand on are left out (`curves.own_base`).
        world: what the numbers were measured on, e.g. "the mini world"; it stands beside every number.
        seconds: wall seconds by stage.
        facts: how it was run, for the reader: learning rate, seed, hardware, command.
        target: the cell whose R-FaceSim is to be matched.
        method: the method that is to match it.
    """

    scores: "pd.DataFrame" = field(repr=False)
    world: str
    seconds: Mapping[str, float]
    facts: Mapping[str, str]
    target: CellKey = TARGET
    method: str = "meta_lora"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scores", curves.on_own_base(self.scores))

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class nouns, "both" last when there are several."""
        return curves.class_nouns(self.scores)

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Every cell that has been run, the untouched base included; of "both" what every class has."""
        return curves.cells(self.scores)

    @cached_property
    def bounds(self) -> dict[str, Bounds | None]:
        """Ceilings and floor by class."""
        return {class_noun: curves.bounds(self.scores, class_noun=class_noun) for class_noun in self.classes}

    @cached_property
    def operating_points(self) -> tuple[CellKey, ...]:
        """The cells the paper's tables compare: LoRA at 625 iterations, Meta-LoRA at 375, rank 1."""
        iterations = paper_reference()["operating_points"]
        return tuple(CellKey(method, 1, iterations[method]) for method in METHODS)

    @cached_property
    def rivals(self) -> tuple[CellKey, ...]:
        """One cell of each method that is no LoRA of ours, in the figures' order.

        Of a method that has several checkpoints it is the last one up to Meta-LoRA's operating point, else its first.
        """
        most = paper_reference()["operating_points"]["meta_lora"]
        found: dict[str, list[CellKey]] = {}
        for key in sorted({cell.key for cell in self.cells}, key=lambda key: (key.rank, key.iterations)):
            if key.method not in (BASE, *METHODS):
                found.setdefault(key.method, []).append(key)
        chosen = [next((k for k in reversed(keys) if k.iterations <= most), keys[0]) for keys in found.values()]
        return tuple(sorted(chosen, key=lambda key: look.order(key.method)))

    @property
    def overall(self) -> str:
        """ "both", or the only class there is."""
        return self.classes[-1]

    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks at which the LoRA methods have been run."""
        return tuple(sorted({cell.key.rank for cell in self.cells if cell.key.method in METHODS}))

    @property
    def iterations(self) -> tuple[int, ...]:
        """Checkpoints of the LoRA methods that have been scored."""
        return tuple(sorted({cell.key.iterations for cell in self.cells if cell.key.method in METHODS}))

    def cell(self, key: CellKey, *, class_noun: str | None = None) -> Cell | None:
        """A cell of a class (default: all people), None when it has not been run."""
        wanted = class_noun or self.overall
        return next((cell for cell in self.cells if cell.key == key and cell.class_noun == wanted), None)

    def base(self, *, class_noun: str | None = None) -> Cell | None:
        """The untouched base."""
        return self.cell(CellKey(BASE, 0, 0), class_noun=class_noun)

    def curve(self, method: str, *, rank: int, class_noun: str) -> list[Cell]:
        """The cells of a method at a rank by ascending iterations."""
        found = [c for c in self.cells if (c.key.method, c.key.rank, c.class_noun) == (method, rank, class_noun)]
        return sorted(found, key=lambda cell: cell.key.iterations)

    @cached_property
    def _matches(self) -> dict[tuple[str, str], StepsToMatch | None]:
        return {}

    def match(self, method: str | None = None, *, class_noun: str | None = None) -> StepsToMatch | None:
        """Iterations a method needs for the target's R-FaceSim; None when the cells are not there yet."""
        key = (method or self.method, class_noun or self.overall)
        if key not in self._matches:
            self._matches[key] = curves.steps_to_match(
                self.scores, method=key[0], target=self.target, class_noun=key[1]
            )
        return self._matches[key]

    def compare(self, a: CellKey, b: CellKey, *, metric: str) -> PairedDifference | None:
        """Paired difference of two cells over all people; None when one is missing."""
        if self.cell(a) is None or self.cell(b) is None:
            return None
        return curves.compare(self.scores, a, b, metric=metric, class_noun=self.overall)

    @cached_property
    def counts(self) -> dict[str, Any]:
        """How much was measured: images, people, photos, prompts, seeds and how images were sampled."""
        generated = self.scores.loc[~self.scores["method"].isin(PHOTO_METHODS)]
        bounds = self.bounds[self.overall]
        photos = {"photos": bounds.photos if bounds else 0, "missed": bounds.missed if bounds else 0}
        settings = set(zip(*(generated[name] for name in _SAMPLING), strict=True))
        return {
            "images": len(set(generated["file"])),
            "identity": _counts(generated.loc[generated["face_found"].notna()]) | photos,
            "prompts": _counts(generated.loc[generated["clip_t"].notna()]),
            "sampling": [
                f"{height} x {width} px, {steps} steps, guidance {guidance:g}, base {base}"
                for height, width, steps, guidance, base in sorted(settings)
            ],
        }


_SAMPLING = ("height", "width", "steps", "guidance", "base_model")


def _counts(rows: "pd.DataFrame") -> dict[str, Any]:
    people = set(zip(rows["class_noun"], rows["identity"], strict=True))
    prompts = set(zip(rows["class_noun"], rows["prompt_id"], strict=True))
    nouns = sorted({noun for noun, _ in people}, reverse=True)
    return {
        "people": {noun: sum(of == noun for of, _ in people) for noun in nouns},
        "prompts_per_class": max((sum(of == noun for of, _ in prompts) for noun in nouns), default=0),
        "seeds": len(set(rows["seed"])),
    }


def paper_reference() -> dict[str, Any]:
    """The paper's own numbers (`metalora/data/paper_reference.yaml`)."""
    return read_yaml((resources.files("metalora") / "data" / "paper_reference.yaml").read_text(encoding="utf-8"))
