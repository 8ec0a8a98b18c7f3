"""A part of many people, for a job of its own: whole cohorts, the same ones whatever the number of parts."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from metalora.core.errors import UserError
from metalora.people.folder import PersonFolder
from metalora.running.setting import Setting


@dataclass(frozen=True)
class Shard:
    """The people of one job; `label` tells its outputs from those of the other parts, empty for everybody."""

    people: tuple[PersonFolder, ...]
    label: str


def shard_of(setting: Setting, people: Sequence[PersonFolder]) -> Shard:
    """The part of the people that `shard=I/N` names.

    Everybody is dealt to cohorts first, as even as can be, and cohorts to parts. With as many parts as cohorts every
    part is a cohort that the undivided run would have had, if all people can train in one batch.

    Raises:
        UserError: not a part, or more parts than cohorts.
    """
    given = setting["shard"]
    if given is None:
        return Shard(tuple(people), "")
    size = setting.numbers("cohort_size", least=1, count=1)[0]
    cohorts = -(-len(people) // size)
    match = re.fullmatch(r"(\d+)/(\d+)", str(given))
    part, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= part <= parts or parts > cohorts:
        raise UserError(
            "there is no such part of the people",
            expected=f"shard=I/N with I from 1 to N, and N at most the {cohorts} cohorts of cohort_size={size}",
            got=str(given),
            key="shard, cohort_size",
        )
    edges = [len(people) * number // cohorts for number in range(cohorts + 1)]
    own = range(cohorts * (part - 1) // parts, cohorts * part // parts)
    chosen = [people[first:last] for place, (first, last) in enumerate(pairwise(edges)) if place in own]
    return Shard(tuple(one for cohort in chosen for one in cohort), f"-{part}of{parts}")
