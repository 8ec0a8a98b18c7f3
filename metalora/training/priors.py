"""What a task asks about Stage 1 before it trains: the names of its files, and whom its plan counts.

Nothing here imports Lightning, which takes seconds: a prior that is there is served without.
"""

from collections.abc import Sequence

from metalora.core.contracts import TrainingPerson

PRIOR = "prior.safetensors"
"""The final prior's file."""


def prior_name(iterations: int) -> str:
    """The file of the prior at a multiple of `prior_every`."""
    return f"prior-{iterations:06d}.safetensors"


def photos_of(people: Sequence[TrainingPerson]) -> dict[str, int]:
    """Photos per identity; one counts once, whatever the number of resolutions it is trained at."""
    return {person.identity: len({image.source for image in person.images}) for person in people}
