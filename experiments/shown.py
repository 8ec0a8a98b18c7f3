"""What every table and figure of the paper shares: where the scores are, what is printed, what is written.

    python -m experiments.NAME.plot [FOLDER ...] [out=DIR]

FOLDER: finished experiment folders; without one reproduce, and rivals and rivals_aug where they are, in the outputs
(METALORA_OUTPUTS, by default outputs). DIR: paper/NAME in the outputs.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from metalora.core import metrics
from metalora.core.atomic import write_bytes, write_json
from metalora.core.errors import UserError
from metalora.core.metrics import PairedDifference
from metalora.evaluation.curves import person_means
from metalora.evaluation.score_table import read_scores
from metalora.reporting.look import Picture
from metalora.reporting.study import Study
from metalora.reporting.tables import NONE, Table, as_text
from metalora.running.study import newest_study, used
from metalora.tasks.report import world_of

if TYPE_CHECKING:
    import pandas as pd

FOLDERS = ("reproduce", "rivals", "rivals_aug")
"""What `make sweep` and `make rivals` leave in the outputs; the first must be there."""
LEVEL = 0.05
"""What p must be below for a difference to be one."""


@dataclass(frozen=True)
class Claim:
    """A claim of the paper and what the scores say to it; `holds` is None where they do not decide."""

    claim: str
    holds: bool | None
    evidence: str

    def line(self) -> str:
        """One line for the terminal."""
        verdict = {True: "HOLDS here", False: "DOES NOT HOLD here", None: "NOT DECIDED here"}[self.holds]
        return f"The paper: {self.claim}. {verdict}: {self.evidence}."


@dataclass(frozen=True)
class Shown:
    """A table or figure of the paper, as measured."""

    tables: tuple[Table, ...]
    pictures: tuple[Picture, ...]
    claims: tuple[Claim, ...]


def study_of(folders: Sequence[Path]) -> Study:
    """The newest studies of experiment folders as one; a folder's cells come from one study each.

    Raises:
        UserError: a folder has no scores.
    """
    tables, worlds = [], set()
    for folder in folders:
        newest = newest_study(folder)
        if newest is None:
            raise UserError(
                "no scores to show", expected="evaluate/*/scores.parquet below it", got=str(folder), key="FOLDER"
            )
        found = used(folder, newest)
        tables += found.scores
        worlds |= found.worlds()
    return Study(read_scores(tables), world=world_of(worlds), seconds={}, facts={})


def show(name: str, make: Callable[[Study, Path], Shown], words: Sequence[str]) -> None:
    """Read, draw, print and write one experiment; `words` as typed after the module."""
    try:
        folders, out = places(name, words)
        present(name, make(study_of(folders), out), out=out)
    except UserError as error:
        raise SystemExit(f"{name}: {error}") from None


def places(name: str, words: Sequence[str]) -> tuple[list[Path], Path]:
    """The folders to read and the one to write, from what was typed."""
    out = next((Path(word.removeprefix("out=")) for word in words if word.startswith("out=")), None)
    folders = [Path(word) for word in words if "=" not in word]
    if unknown := [word for word in words if "=" in word and not word.startswith("out=")]:
        raise UserError("unknown option", expected="[FOLDER ...] [out=DIR]", got=unknown[0])
    if not folders:
        first, *more = (outputs() / folder for folder in FOLDERS)
        folders = [first, *(folder for folder in more if folder.is_dir())]
    return folders, out or outputs() / "paper" / name


def outputs() -> Path:
    """Where everything that is made lies."""
    return Path(os.environ.get("METALORA_OUTPUTS", "outputs"))


def present(name: str, shown: Shown, *, out: Path) -> None:
    """Print tables and claims, and write them beside the pictures as NAME.md and claims.json."""
    parts = ["```\n" + as_text(table) + "\n```" for table in shown.tables if table.rows]
    lines = [claim.line() for claim in shown.claims]
    write_bytes(out / f"{name}.md", ("\n\n".join([*lines, *parts]) + "\n").encode())
    write_json(out / "claims.json", {"experiment": name, "claims": [asdict(claim) for claim in shown.claims]})
    for table in shown.tables:
        if table.rows:
            print(as_text(table) + "\n")
    print(*lines, sep="\n")
    files = [str(file) for picture in shown.pictures for file in (picture.pdf, picture.svg, picture.png) if file]
    print("written: " + ", ".join([*files, str(out / f"{name}.md")]))


def by_person(rows: "pd.DataFrame", metric: str) -> "pd.Series":
    """A score of each person in a cell's rows (`curves.person_means`)."""
    import pandas as pd

    people = sorted(rows["identity"].unique())
    return pd.Series(person_means(rows, metric, among=people), index=people)


def paired(a: "pd.Series", b: "pd.Series") -> PairedDifference:
    """a minus b over the people that both have."""
    a, b = a.align(b, join="inner")
    return metrics.paired_bootstrap(a.to_numpy(dtype=float), b.to_numpy(dtype=float))


def points(value: float, *, sign: bool = False) -> str:
    """A cosine or fraction times 100 with one decimal; a dash for what was not measured."""
    if not math.isfinite(value):
        return NONE
    return f"{round(100 * value, 1) + 0.0:{'+' if sign else ''}.1f}"  # no -0.0


def interval(mean: float, low: float, high: float) -> str:
    """Points with their 95% interval."""
    return f"{points(mean, sign=True)} ({points(low, sign=True)} to {points(high, sign=True)})"


def told(gap: PairedDifference) -> str:
    """Points with their 95% interval and p."""
    p = "" if math.isnan(gap.p) else "; p < 0.001" if gap.p < 0.001 else f"; p = {gap.p:.3f}"
    return f"{points(gap.mean, sign=True)} points ({points(gap.low, sign=True)} to {points(gap.high, sign=True)}{p})"


def verdict(gap: PairedDifference) -> bool | None:
    """Whether a difference that the paper has above 0 is so here; None where the interval holds 0, or signs drawn at
    random would do as well."""
    if not gap.p < LEVEL:
        return None
    return True if gap.low > 0 else False if gap.high < 0 else None
