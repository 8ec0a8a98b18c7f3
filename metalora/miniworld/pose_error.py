"""How well five points tell where a head is turned, on rendered people whose pose is known.

`python -m metalora.miniworld.pose_error [people=300] [size=256]`
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metalora.core.errors import UserError
from metalora.miniworld.population import CLASS_NOUNS, identity
from metalora.miniworld.renderer import render
from metalora.miniworld.shots import Shot, sample_shot
from metalora.perception.faces import MtcnnDetector
from metalora.perception.pose import head_pose

LIMIT = 30.0
"""Degrees from frontal that Meta-PHD allows its single photos."""


@dataclass(frozen=True)
class PoseErrors:
    """Degrees: true and estimated (yaw, pitch, roll) of the N heads that were found, of `tried`."""

    true_N3: np.ndarray
    found_N3: np.ndarray
    tried: int

    @property
    def errors(self) -> np.ndarray:
        """Estimates minus truths, [N, 3]."""
        return self.found_N3 - self.true_N3


def shots(count: int, *, seed: int) -> list[Shot]:
    """Photos at every yaw within 50 degrees and every pitch within 16, framed as Mini-PHD's are and closer."""
    rng = np.random.default_rng(seed)
    return [
        sample_shot(
            rng,
            fixed={
                "style": "photo",
                "yaw": float(rng.uniform(-50, 50)),
                "pitch": float(rng.uniform(-16, 16)),
                "scale": float(rng.uniform(0.5, 1.0)),
            },
        )
        for _ in range(count)
    ]


def measure(count: int, *, size: int, seed: int = 11) -> PoseErrors:
    """Render, find, estimate."""
    people = [identity("base", CLASS_NOUNS[k % 2], 7000 + k) for k in range(count)]
    taken = shots(count, seed=seed)
    detector = MtcnnDetector()
    true, found = [], []
    for start in range(0, count, 50):
        pictures = render(people[start : start + 50], taken[start : start + 50], height=size, width=size)
        for shot, faces in zip(taken[start : start + 50], detector.detect(list(pictures)), strict=True):
            if faces and faces[0].points is not None:
                pose = head_pose(faces[0].points)
                true.append((shot.yaw, shot.pitch, shot.roll))
                found.append((pose.yaw, pose.pitch, pose.roll))
    return PoseErrors(np.array(true), np.array(found), tried=count)


def main(argv: Sequence[str]) -> int:
    """Print mean and 95th percentile of the absolute error, and how often the limit is judged rightly."""
    options = {"people": "300", "size": "256"}
    for word in argv:
        name, _, value = word.partition("=")
        if name not in options or not value.isdigit():
            raise UserError("unknown option", expected=" ".join(f"{k}=N" for k in options), got=word, key=name)
        options[name] = value
    errors = measure(int(options["people"]), size=int(options["size"]))
    yaw_N, wrong_N3 = np.abs(errors.true_N3[:, 0]), np.abs(errors.errors)
    print(f"{len(yaw_N)} of {errors.tried} heads found at {options['size']} px; degrees")
    for column, name in enumerate(("yaw", "pitch", "roll")):
        e_N = wrong_N3[:, column]
        bias = errors.errors[:, column].mean()
        print(f"{name:<6} mean error {e_N.mean():5.1f}   95% below {np.percentile(e_N, 95):5.1f}   bias {bias:+5.1f}")
    for low, high in ((0, 15), (15, 30), (30, 50)):
        e_N = wrong_N3[(yaw_N >= low) & (yaw_N < high), 0]
        mean, most = e_N.mean(), np.percentile(e_N, 95)
        print(f"yaw of {low} to {high}: mean error {mean:4.1f}, 95% below {most:4.1f} ({len(e_N)})")
    over_N = np.abs(errors.found_N3[:, 0]) > LIMIT
    for low, high in ((0, 20), (20, 30), (30, 40), (40, 50)):
        chosen = (yaw_N >= low) & (yaw_N < high)
        print(f"yaw of {low} to {high}: judged over {LIMIT:.0f} in {over_N[chosen].mean():.0%} of {chosen.sum()}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(str(error))
