"""How often the right one of all people is recognised, at the cell of each rank where that is most often.

By single pictures, and by all of a seed's pictures of a person together; beside it how often a single photo is.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.shown import points
from experiments.tradeoff import store
from experiments.tradeoff.protocol import RUNS, TEST, Prior
from metalora.core import metrics
from metalora.reporting import look

if TYPE_CHECKING:
    import pandas as pd

CELL = ["method", "rank", "rate", "iterations"]


def said(results: Path) -> str:
    """One paragraph, from what is there."""
    table = _table(results, by_person=False)
    single = best(table, "identified")
    text = f"The right one of {single[2]} people is recognised in {single[0]} of single frontal pictures at the best"
    text += f" cell ({single[1]}); a face that is not found counts as wrong."
    for rank, of_rank in table.groupby("rank"):
        share, name, _ = best(of_rank, "identified")
        if name != single[1]:
            text += f" At rank {rank} it is {share} at most ({name})."
    together = _table(results, by_person=True)
    if not together.empty:
        most = best(together, "recognised")
        count = together["pictures"].max()
        text += f" By the mean of the faces found in a seed's {count} frontal pictures {most[0]} of people are"
        text += f" (best cell: {most[1]}; somebody without any face counts as wrong; not of the protocol)."
    if (results / store.GALLERY).is_file():
        photos = json.loads((results / store.GALLERY).read_text())
        bound = [f"{100 * photos[kind]:.1f}%" for kind in ("reference_photo", "unseen_photo")]
        text += f" Of single photos it is {bound[0]} of those that were trained on, and {bound[1]} of unseen ones."
    return text


def best(table: "pd.DataFrame", value: str) -> tuple[str, str, int]:
    """The share at the best cell with its 95% interval over people, the cell's name, and how many people there are."""
    people = table.groupby([*CELL, "identity"], observed=True)[value].mean()  # over seeds and pictures
    cells = people.groupby(CELL, observed=True).mean()
    method, rank, rate, iterations = cells.idxmax()
    found = metrics.bootstrap(people.loc[(method, rank, rate, iterations)].to_numpy())
    share = f"{points(found.mean)}% (95%: {points(found.low)} to {points(found.high)})"
    name = f"{look.label(method)}, rank {rank}, {rate:g}, {iterations} iterations"
    return share, name, table["identity"].nunique()


def _table(results: Path, *, by_person: bool) -> "pd.DataFrame":
    """Rows of all runs on test people with a learned prior of the usual kind, with their rate."""
    import pandas as pd

    rates = {line["name"]: line.get("learning_rate") for line in store.costs(results)}
    frames = []
    for run in RUNS:
        place = (store.people_path if by_person else store.scores_path)(run.name, results=results)
        if run.benchmark != TEST or run.prior != Prior() or len(run.classes) != 2 or not place.is_file():
            continue
        frame = pd.read_parquet(place) if by_person else store.read_run(run.name, results=results)
        known = frame[frame["rank"] > 0] if by_person else frame[(frame["rank"] > 0) & frame["identified"].notna()]
        frames.append(known.assign(rate=rates[run.name]))
    if not frames:
        return pd.DataFrame()
    table = pd.concat(frames, ignore_index=True)
    seeds = table.groupby(CELL, observed=True)["seed"].transform("nunique")
    return table[seeds == seeds.max()]  # a cell of one seed is noisier, and would win by it
