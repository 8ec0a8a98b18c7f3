"""What in a benchmark's photos violates the rules of Meta-PHD's curation (section 4.1), as far as a program can see.

Judged: counts; every photo there once; one person per photo; in the ffhq part, eyes that can be seen open and a head
within 30 degrees of frontal; 4 to 10 photos of varied pose per unsplash identity. Hats and hands are left to human
eyes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metalora.core.contracts import FaceDetector, FivePoints
from metalora.core.errors import UserError
from metalora.people.benchmark import Benchmark, Subject
from metalora.people.photos import load_photo, pixel_sha256

YAW_LIMIT = 30.0
"""Degrees from frontal in the ffhq part."""
PHOTOS = (4, 10)
"""Photos per unsplash identity."""
POSE_SPREAD = 20.0
"""Degrees of yaw that an identity's photos must span to count as varied; the paper gives no number. It is one and a
half times what 95% of single estimates are off by at most."""

READABLE, REFERENCE_AGAIN = "readable", "the reference is no test photo"
"""Rules without which nothing can be scored."""
ONCE = "every photo once"


@dataclass(frozen=True)
class Violation:
    """A rule that something in the benchmark breaks; `path` is a photo, a person's folder or the benchmark itself."""

    rule: str
    path: Path
    what: str


@dataclass(frozen=True)
class Seen:
    """What was found on one photo: faces, the best one's yaw (degrees), and whether its eyes can be seen."""

    faces: int
    yaw: float | None
    eyes: tuple[bool, bool] | None


def check_curation(
    benchmark: Benchmark,
    root: Path,
    *,
    detector: FaceDetector,
    yaw_of: Callable[[FivePoints], float],
    eyes_of: Callable[[np.ndarray, FivePoints], tuple[bool, bool]],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[tuple[Violation, ...], Mapping[Path, Seen]]:
    """Look at every photo; returns what violates a rule, and what was seen on each photo.

    Args:
        yaw_of: a head's yaw in degrees from its five points.
        eyes_of: whether the eye on the picture's left, and the other, can be seen.
    """
    found = [Violation("counts", root, note) for note in benchmark.notes]
    found += [Violation("files", skipped.path, skipped.reason) for skipped in benchmark.skipped]
    photos = [(s, path) for s in benchmark.subjects for path in (s.reference, *s.test_photos)]
    seen: dict[Path, Seen] = {}
    first: dict[str, tuple[Subject, Path]] = {}
    pixels: dict[Path, str] = {}
    for done, (subject, path) in enumerate(photos, start=1):
        try:
            picture = load_photo(path, key="path")
        except UserError as error:
            found.append(Violation(READABLE, path, error.told))
            progress(done, len(photos))
            continue
        seen[path] = _look(picture, detector=detector, yaw_of=yaw_of, eyes_of=eyes_of)
        found += _photo(subject, path, seen[path])
        pixels[path] = pixel_sha256(picture)
        other, earlier = first.setdefault(pixels[path], (subject, path))
        if path != subject.reference and pixels.get(subject.reference) == pixels[path]:
            found.append(Violation(REFERENCE_AGAIN, path, f"the same picture as the reference {subject.reference}"))
        elif earlier != path:
            whose = "" if other.identity == subject.identity else f"{other.identity}'s "
            found.append(Violation(ONCE, path, f"the same picture as {whose}{earlier}"))
        progress(done, len(photos))
    for subject in benchmark.subjects:
        if subject.part == "unsplash":
            found += _person(subject, seen)
    return tuple(found), seen


def _look(
    picture: np.ndarray,
    *,
    detector: FaceDetector,
    yaw_of: Callable[[FivePoints], float],
    eyes_of: Callable[[np.ndarray, FivePoints], tuple[bool, bool]],
) -> Seen:
    (faces,) = detector.detect([picture])
    if not faces or faces[0].points is None:
        return Seen(len(faces), None, None)
    return Seen(len(faces), yaw_of(faces[0].points), eyes_of(picture, faces[0].points))


def _photo(subject: Subject, path: Path, seen: Seen) -> list[Violation]:
    found = []
    if seen.faces != 1:
        what = "no face is found" if seen.faces == 0 else f"{seen.faces} faces are found"
        found.append(Violation("exactly one person", path, what))
    if subject.part != "ffhq":
        return found
    if seen.yaw is not None and abs(seen.yaw) > YAW_LIMIT:
        found.append(Violation("within 30 degrees of frontal", path, f"turned by about {abs(seen.yaw):.0f} degrees"))
    if seen.eyes is not None and not all(seen.eyes):
        which = "neither eye" if not any(seen.eyes) else f"not the eye on the {'right' if seen.eyes[0] else 'left'}"
        found.append(Violation("eyes open, face unobstructed", path, f"{which} can be seen open: closed, or covered"))
    return found


def _person(subject: Subject, seen: Mapping[Path, Seen]) -> list[Violation]:
    paths: Sequence[Path] = (subject.reference, *subject.test_photos)
    folder = subject.reference.parent
    found = []
    if not PHOTOS[0] <= len(paths) <= PHOTOS[1]:
        found.append(Violation("4 to 10 photos per identity", folder, f"{len(paths)} photos"))
    yaws = [yaw for path in paths if path in seen and (yaw := seen[path].yaw) is not None]
    if len(yaws) > 1 and np.ptp(yaws) < POSE_SPREAD:
        span = f"yaw from about {min(yaws):.0f} to {max(yaws):.0f} degrees"
        found.append(Violation("varied pose", folder, span))
    return found
