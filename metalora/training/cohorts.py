"""Who trains with whom in Stage 2, what is there already, and where a cut run goes on.

A *cohort* is people trained in one batch. Its folder `out/cohort-<hash>` holds the roster (written before anything is
trained), the state and the metrics; each person's LoRAs lie in `out/<identity>/`. Because rosters are kept, a cut
cohort goes on with the same batch, also when some of its people were finished just before. A LoRA from before the saved
state is trained for aside, in `again`: the state and its metrics stay as far as they got.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metalora.core.atomic import write_json, writing
from metalora.core.contracts import TrainingPerson
from metalora.people.sampler import group_cohorts
from metalora.training.configuration import check_file, check_same

ROSTER, STATE, AGAIN = "roster.json", "last.ckpt", "again"
Configurations = Mapping[str, Mapping[str, Any]]
"""identity -> what that person's LoRAs depend on."""


@dataclass(frozen=True)
class Cohort:
    """People who train in one batch, in row order."""

    people: tuple[TrainingPerson, ...]
    folder: Path
    missing: dict[int, tuple[str, ...]]
    """iterations -> identities whose LoRA at that point is still to be written."""


@dataclass(frozen=True)
class Leg:
    """Iterations of a cohort that are trained in one go."""

    folder: Path
    """Of its state and metrics."""
    missing: dict[int, tuple[str, ...]]
    """As of the cohort."""
    again: bool
    """They were trained before, and somebody's LoRA of then is missing."""


def legs_of(cohort: Cohort, *, reached: int) -> list[Leg]:
    """What was passed already is trained again from the start, what is still ahead from the saved state.

    Args:
        reached: iterations that the cohort's state has behind it; 0: there is none.
    """
    behind = {n: names for n, names in cohort.missing.items() if n <= reached}
    ahead = {n: names for n, names in cohort.missing.items() if n > reached}
    legs = (Leg(cohort.folder / AGAIN, behind, again=True), Leg(cohort.folder, ahead, again=False))
    return [leg for leg in legs if leg.missing]


def lora_path(out: Path, identity: str, iterations: int) -> Path:
    """Where a person's LoRA lies: out/<identity>/lora-000375.safetensors."""
    return out / identity / f"lora-{iterations:06d}.safetensors"


def plan_cohorts(
    out: Path,
    people: Sequence[TrainingPerson],
    *,
    configurations: Configurations,
    milestones: Sequence[int],
    size: int,
) -> list[Cohort]:
    """What is left to train; empty when every LoRA is there.

    Raises:
        UserError: a LoRA or a roster in `out` was made under another configuration.
    """
    missing = {person.identity: _missing(out, person.identity, configurations, milestones) for person in people}
    by_name = {person.identity: person for person in people}
    groups, seated = [], set()
    for members in _rosters(out, configurations):
        if set(members) <= set(by_name) and not seated & set(members) and any(missing[name] for name in members):
            groups.append(tuple(by_name[name] for name in members))
            seated |= set(members)
    groups += group_cohorts([one for one in people if missing[one.identity] and one.identity not in seated], size=size)
    return [
        Cohort(
            people=group,
            folder=out / f"cohort-{_hash([person.identity for person in group])}",
            missing={
                n: names
                for n in sorted(milestones)
                if (names := tuple(person.identity for person in group if n in missing[person.identity]))
            },
        )
        for group in groups
    ]


def write_roster(cohort: Cohort, configurations: Configurations) -> None:
    """Say who trains together, before the first iteration."""
    path = cohort.folder / ROSTER
    with writing(path):
        # A list of pairs: the order is the order of rows, and JSON objects are written sorted.
        write_json(path, [[person.identity, dict(configurations[person.identity])] for person in cohort.people])


def _rosters(out: Path, configurations: Configurations) -> list[list[str]]:
    rosters = []
    for path in sorted(out.glob(f"cohort-*/{ROSTER}")):
        entries = json.loads(path.read_text())
        known = [(identity, found) for identity, found in entries if identity in configurations]
        if (path.parent / STATE).is_file():
            for identity, found in known:
                check_same(configurations[identity], found, where=path.parent)
        if all(dict(configurations[identity]) == found for identity, found in known):
            rosters.append([identity for identity, _ in entries])
    return rosters


def _missing(out: Path, identity: str, configurations: Configurations, milestones: Sequence[int]) -> set[int]:
    paths = {n: lora_path(out, identity, n) for n in milestones}
    for path in paths.values():
        if path.is_file():
            check_file(path, configurations[identity])
    return {n for n, path in paths.items() if not path.is_file()}


def _hash(names: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:10]
