"""The mini world's people as photo folders: Stage 1, and benchmarks in Meta-PHD's layout (section 4.1)."""

from pathlib import Path
from typing import Any

import numpy as np

from metalora.core.atomic import write_json
from metalora.miniworld.corpus import SIZES
from metalora.miniworld.folders import Photo, Progress, finish, finished, write_folders
from metalora.miniworld.identity import Identity, generator_from
from metalora.miniworld.population import CLASS_NOUNS, people
from metalora.miniworld.shots import sample_shot
from metalora.miniworld.vocabulary import EXPRESSIONS, LIGHTS, SCENES, SHIRTS

PHOTO_SIZE = 256
"""Side of benchmark photos in pixels: large enough that crops at the training size stay sharp."""
PHOTOS_PER_PERSON = {
    "man": (4, 10, 6, 5, 7, 6, 8, 4),
    "woman": (5, 6, 7, 10, 6, 4, 5, 5),
}
"""Mini-PHD's multi-photo people: 16, with 98 photos as in Meta-PHD."""
SINGLE_PHOTOS = 30
"""Single-photo people per class."""
SINGLE_YAW = 30.0
"""Largest turn of the single photos in degrees, as in Meta-PHD."""
_RENDERER = 1
"""Raise it when the renderer's pictures change: folders of older pictures are then refused."""
SPLIT_BENCHMARKS = {"mini_validation": ("validation", 16, 5), "mini_test": ("test", 32, 5)}
"""Benchmarks made of one split: its name, people per class, photos per person."""
# Part of every seed. With this take MTCNN finds exactly one face in each photo of both benchmarks; after a change of
# the renderer count again, and raise it when a face is missed.
_TAKE = 0


def write_people(
    root: Path, split: str, class_noun: str, *, count: int, photos: int, progress: Progress | None = None
) -> None:
    """Write ROOT/IDENTITY/*.png: each photo in its own scene, clothes, pose, light, expression and framing.

    The five sizes of the corpus take turns, so every person has all of them. Photos are of the training size.

    Args:
        root: folder of one class; skipped when it is complete.
        split: one of `population.SPLITS`.
        class_noun: "man" or "woman".
        count: people.
        photos: photos per person.
        progress: called with (what, photos done, photos in all).

    Raises:
        UserError: `root` was written with other arguments.
    """
    root = Path(root)
    arguments = {"split": split, "class_noun": class_noun, "count": count, "photos": photos, "renderer": _RENDERER}
    if finished(root, arguments=arguments, key="people.root"):
        return
    folders: dict[Path, list[Photo]] = {}
    for person in people(split, class_noun, count=count):
        rng, own = generator_from(f"photos/{person.key}"), []
        for k in range(photos):
            height, width = SIZES[k % len(SIZES)]
            own.append(Photo(f"{k:02d}.png", person, sample_shot(rng, fixed={"style": "photo"}), height, width))
        folders[root / person.key] = own
    write_folders(folders, title=f"render {count} people ({class_noun})", progress=progress)
    write_json(root / "identities.json", dict.fromkeys((path.name for path in folders), class_noun))
    finish(root, arguments=arguments, photos=count * photos)


def write_mini_phd(root: Path, *, progress: Progress | None = None) -> None:
    """Write Mini-PHD: ROOT/unsplash (16 people, 98 photos), ROOT/ffhq (30 men, 30 women, one photo each), class nouns.

    A multi-photo person wears the same clothes in the same place on all photos; the first by name is the reference:
    near-frontal, neutral, wide enough that crops around the face exist.

    Raises:
        UserError: `root` was written with other arguments.
    """
    root = Path(root)
    arguments = {
        "benchmark": "mini_phd",
        "renderer": _RENDERER,
        "size": PHOTO_SIZE,
        "photos": {k: list(v) for k, v in PHOTOS_PER_PERSON.items()},
    }
    if finished(root, arguments=arguments, key="benchmark.root"):
        return
    folders: dict[Path, list[Photo]] = {}
    nouns: dict[str, str] = {}
    for class_noun in CLASS_NOUNS:
        counts = PHOTOS_PER_PERSON[class_noun]
        for person, count in zip(people("phd", class_noun, count=len(counts)), counts, strict=True):
            folders[root / "unsplash" / person.key] = _session(person, count=count)
            nouns[person.key] = class_noun
        singles = people("ffhq", class_noun, count=SINGLE_PHOTOS)
        folders[root / "ffhq" / class_noun] = [_single(person, name=f"{k:05d}.png") for k, person in enumerate(singles)]
    _write_benchmark(root, folders, nouns, arguments=arguments, progress=progress)


def write_split(root: Path, name: str, *, progress: Progress | None = None) -> None:
    """Write the people of a split in the form of Mini-PHD's multi-photo part.

    Args:
        name: "mini_validation" (16 men, 16 women: settings are chosen on them) or "mini_test" (32 and 32: looked at
            once, when nothing is to be chosen any more). 5 photos each.

    Raises:
        UserError: `root` was written with other arguments.
    """
    root = Path(root)
    split, count, photos = SPLIT_BENCHMARKS[name]
    arguments = {"benchmark": name, "renderer": _RENDERER, "size": PHOTO_SIZE, "people": count, "photos": photos}
    if finished(root, arguments=arguments, key="benchmark.root"):
        return
    folders: dict[Path, list[Photo]] = {}
    nouns: dict[str, str] = {}
    for class_noun in CLASS_NOUNS:
        for person in people(split, class_noun, count=count):
            folders[root / "unsplash" / person.key] = _session(person, count=photos)
            nouns[person.key] = class_noun
    _write_benchmark(root, folders, nouns, arguments=arguments, progress=progress)


def _write_benchmark(
    root: Path,
    folders: dict[Path, list[Photo]],
    nouns: dict[str, str],
    *,
    arguments: dict[str, Any],
    progress: Progress | None,
) -> None:
    write_folders(folders, title="render benchmark", progress=progress)
    write_json(root / "identities.json", nouns)
    finish(root, arguments=arguments, photos=sum(len(photos) for photos in folders.values()))


def _session(person: Identity, *, count: int) -> list[Photo]:
    """One person's photos of one day: same clothes, place and light; the first is the reference."""
    rng = _rng(person.key)
    day = {
        "style": "photo",
        "scene": str(rng.choice(list(SCENES))),
        "shirt": str(rng.choice(list(SHIRTS))),
        "light": str(rng.choice(list(LIGHTS), p=[0.4, 0.25, 0.25, 0.1])),
        "seed": int(rng.integers(1 << 30)),
    }
    photos = []
    for k in range(count):
        if k == 0:
            own = _wide(rng, yaw=4.0) | {"expression": "neutral"}
        else:
            own = {
                "yaw": float(rng.uniform(-45, 45)),
                "scale": float(rng.uniform(0.5, 0.95)),
                "expression": str(rng.choice(list(EXPRESSIONS), p=[0.4, 0.35, 0.12, 0.13])),
            }
        name = f"{k:02d}.png"
        shot = sample_shot(_rng(f"{person.key}/{name}"), fixed=day | own)
        photos.append(Photo(name, person, shot, PHOTO_SIZE, PHOTO_SIZE))
    return photos


def _single(person: Identity, *, name: str) -> Photo:
    """The only photo of a person: any place, clothes, light and expression, at most 30 degrees from frontal."""
    rng = _rng(f"{person.key}/{name}")
    shot = sample_shot(rng, fixed={"style": "photo"} | _wide(rng, yaw=SINGLE_YAW))
    return Photo(name, person, shot, PHOTO_SIZE, PHOTO_SIZE)


def _wide(rng: np.random.Generator, *, yaw: float) -> dict[str, float]:
    """Framing and pose of a photo that training crops are cut from: the torso is on it, the head is nearly upright."""
    return {
        "yaw": float(rng.uniform(-yaw, yaw)),
        "pitch": float(np.clip(rng.normal(0, 3), -6, 6)),
        "roll": float(np.clip(rng.normal(0, 2), -5, 5)),
        "scale": float(rng.uniform(0.46, 0.56)),
    }


def _rng(name: str) -> np.random.Generator:
    return generator_from(f"benchmark/{name}/take-{_TAKE}")
