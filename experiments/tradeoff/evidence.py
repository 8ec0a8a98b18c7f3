"""The study's tables of scores by question: seeds joined, methods told apart that one table shows beside each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.tradeoff import choose, store
from experiments.tradeoff.protocol import METHODS, RUNS, SEEDS, SLOW
from metalora.core.errors import UserError
from metalora.evaluation.curves import CellKey, cell_keys
from metalora.evaluation.score_table import BASE, PHOTO_METHODS

if TYPE_CHECKING:
    import pandas as pd

RANDOM, SPECTRUM = "random_down", "spectrum_down"
"""Meta-LoRA from Meta-Downs that have learned nothing: of the learned ones' norms, of their singular values."""


@dataclass(frozen=True)
class Evidence:
    """Everything under a folder of results; a property raises UserError where its runs are missing."""

    results: Path = store.RESULTS

    def has(self, *beginnings: str) -> bool:
        """Whether every run whose name begins so is there."""
        return all(
            store.scores_path(run.name, results=self.results).is_file()
            for run in RUNS
            if run.name.startswith(beginnings)
        )

    def _joined(self, names: Sequence[str], rename: dict[str, str] | None = None) -> "pd.DataFrame":
        return store.joined(names, results=self.results, rename=rename)

    @cached_property
    def common(self) -> "pd.DataFrame":
        """All methods at the common rate: ranks 1 and, where they are there, 4 and 16, and the controls."""
        names = [run.name for run in RUNS if run.name.startswith(("rank01-", "rank04-", "rank16-"))]
        there = [name for name in names if store.scores_path(name, results=self.results).is_file()]
        tables = [self._joined([name for name in names if name in there or name.startswith("rank01-")])]
        for beginning, name in (("random", RANDOM), ("spectrum", SPECTRUM)):
            if self.has(f"{beginning}-"):
                drawn = self._joined([f"{beginning}-s{seed}" for seed in SEEDS], {"meta_lora": name})
                tables.append(drawn[drawn["method"] == name])
        return _stacked(tables)

    @cached_property
    def slow(self) -> "pd.DataFrame":
        """LoRA + aug and Meta-LoRA at the lower rate."""
        return self._joined([f"slow-s{seed}" for seed in SEEDS])

    def own(self, *methods: str) -> "pd.DataFrame":
        """Methods each at the rate that is best for it, wherever it was run at that rate.

        Raises:
            UserError: one has not been run at that rate.
        """
        tables = []
        for method in methods:
            source = self._at_own_rate(method)
            tables.append(source[(source["method"] == method) & (source["rank"] == 1)])
        tables.append(self.common[self.common["method"].isin((BASE, *PHOTO_METHODS))])
        return _stacked(tables)

    def has_own(self, *methods: str) -> bool:
        """Whether all of them were run at their own rates."""
        return all(self._shared(method) is not None or self.has(f"own-{method}-") for method in methods)

    def _at_own_rate(self, method: str) -> "pd.DataFrame":
        shared = self._shared(method)
        return self._joined([f"own-{method}-s{seed}" for seed in SEEDS]) if shared is None else shared

    def _shared(self, method: str) -> "pd.DataFrame | None":
        """The table of a rate that all are run at, when that is a method's own rate."""
        if self.rates[method] == self.rates[choose.CHOOSING]:
            return self.common
        return self.slow if self.rates[method] == SLOW and method != "lora" else None

    @cached_property
    def rates(self) -> dict[str, float]:
        """Each method's own rate."""
        return {method: choose.own_rate(method, self.results) for method in METHODS}

    def people(self, count: int) -> "pd.DataFrame":
        """Meta-LoRA with a prior of so many people."""
        if count == 100:
            table = self.common
            return table[(table["method"] == "meta_lora") & (table["rank"] == 1)]
        table = self._joined([f"people{count:03d}-s{seed}" for seed in SEEDS])
        return table[table["method"] == "meta_lora"]

    def widths(self) -> dict[tuple[int, int], "pd.DataFrame"]:
        """Meta-LoRA by (r1, Stage-1 iterations), women."""
        found: dict[tuple[int, int], list[str]] = {}
        for run in RUNS:
            if run.name.startswith("r1-"):
                found.setdefault((run.prior.meta_rank, run.prior.steps), []).append(run.name)
        return {key: self._joined(names) for key, names in found.items()}


def curve(scores: "pd.DataFrame", method: str, *, rank: int = 1) -> list[CellKey]:
    """A method's cells at a rank by rising iterations.

    Raises:
        UserError: there are none.
    """
    found = [key for key in cell_keys(scores) if (key.method, key.rank) == (method, rank)]
    if not found:
        raise UserError("no such cells", expected=f"{method} at rank {rank}", got="none", key="results")
    return found


def from_base(scores: "pd.DataFrame", method: str, *, rank: int = 1) -> list[CellKey]:
    """The same with the untouched base before them: where every method is at iteration 0."""
    return [CellKey(BASE, 0, 0), *curve(scores, method, rank=rank)]


def of_cells(scores: "pd.DataFrame", keys: "Sequence[CellKey]") -> "pd.DataFrame":
    """The rows of a few cells: of a small table, what is asked again and again is found sooner."""
    wanted = scores["iterations"].isin([key.iterations for key in keys]) & scores["rank"].isin([k.rank for k in keys])
    some = scores.loc[wanted]
    some = some.loc[some["method"].isin([key.method for key in keys])]
    assert set(some["class_noun"].unique()) == set(scores["class_noun"].unique()), f"a class lacks {keys}"
    return some


def of_seed(scores: "pd.DataFrame", seed: int) -> "pd.DataFrame":
    """The rows of one seed, and those of photos, which have none."""
    return scores[scores["seed"].eq(seed) | scores["method"].isin(PHOTO_METHODS)]


def _stacked(tables: "Sequence[pd.DataFrame]") -> "pd.DataFrame":
    import pandas as pd

    return pd.concat(tables, ignore_index=True)
