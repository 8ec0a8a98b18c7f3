"""Table 2: sets of three seeds against each other. Here machines look, not people.

    python -m experiments.table2.plot [FOLDER ...] [out=DIR]    # default: sets (`make sets`) in the outputs, if any

The paper asks people for diversity and accuracy to the prompt together. Here each is judged alone: whose set follows
the prompt more closely (mean CLIP-T), and whose differs more from seed to seed (CLIP). What people say is `metalora
study analyse`.
"""

import sys
from pathlib import Path

import numpy as np

from experiments.shown import Claim, Shown, outputs, places, points, present, study_of, told, verdict
from metalora.core import metrics
from metalora.core.errors import UserError
from metalora.evaluation.curves import CellKey, rows_of
from metalora.reporting import look
from metalora.reporting.study import Study, paper_reference
from metalora.reporting.tables import Table

KINDS = {
    "overall": ("recontextualized", "stylized"),
    "recontextualized": ("recontextualized",),
    "stylized": ("stylized",),
}
JUDGES = {"clip_t": "prompt", "seed_diversity": "diversity"}


def make(study: Study, out: Path) -> Shown:
    """How often Meta-LoRA's set is the better one."""
    del out
    ours = next((key for key in study.operating_points if key.method == "meta_lora" and study.cell(key)), None)
    if ours is None or not study.rivals:
        raise UserError("Table 2 needs sets of Meta-LoRA and of a rival", expected="`make sets`", key="FOLDER")
    theirs = study.rivals[0]
    rows, claims = [], []
    paper = {row["method"]: row for row in paper_reference()["user_study"]["table_2"]["rows"]}["meta_lora"]
    for judge, word in JUDGES.items():
        of_person = {kind: shares_of(study, ours, theirs, judge, kinds) for kind, kinds in KINDS.items()}
        shares = [metrics.bootstrap(found) for found in of_person.values()]
        texts = [f"{points(s.mean)} ({points(s.low)} to {points(s.high)})" for s in shares]
        rows.append((f"{word} ({judge})", *texts))
        gap = metrics.paired_bootstrap(of_person["overall"], np.full_like(of_person["overall"], 0.5))
        text = f"a machine that looks at {word} takes Meta-LoRA's {told(gap)} more often than half"
        claims.append(
            Claim(f"Meta-LoRA's sets are preferred ({word})", verdict(gap), text + "; no people have been asked")
        )
    rows.append(("the paper's 25 people, against PuLID", *(f"{paper[kind]:.2f}" for kind in KINDS)))
    title = (
        f"Table 2: sets of Meta-LoRA preferred to {look.label(theirs.method)}'s, % (JUDGED BY MACHINES): {study.world}"
    )
    return Shown((Table(title, ("judge", *KINDS), tuple(rows)),), (), tuple(claims))


def shares_of(study: Study, ours: CellKey, theirs: CellKey, score: str, kinds: tuple[str, ...]) -> np.ndarray:
    """By person, the share of prompts whose set of ours has the higher mean; a tie is half."""
    tables = []
    for key in (ours, theirs):
        rows = rows_of(study.scores, key, class_noun=study.overall)
        rows = rows[rows["kind"].isin(kinds) & rows[score].notna()]
        tables.append(rows.groupby(["identity", "prompt_id"])[score].mean())
    a, b = tables[0].align(tables[1], join="inner")
    better = (a > b) + 0.5 * (a == b)
    return better.groupby("identity").mean().to_numpy(dtype=float)


if __name__ == "__main__":
    try:
        given, SETS = sys.argv[1:], outputs() / "sets"
        folders, target = places(
            "table2", given if not SETS.is_dir() or any("=" not in word for word in given) else [str(SETS), *given]
        )
        present("table2", make(study_of(folders), target), out=target)
    except UserError as error:
        raise SystemExit(f"table2: {error}") from None
