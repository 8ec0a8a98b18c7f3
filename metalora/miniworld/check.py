"""How many faces MTCNN finds: `python -m metalora.miniworld.check [people=200] [size=160]`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metalora.core.errors import UserError
from metalora.miniworld.identity import Identity
from metalora.miniworld.population import CLASS_NOUNS, identity
from metalora.miniworld.renderer import face_boxes, render
from metalora.miniworld.shots import Shot, sample_shot
from metalora.miniworld.vocabulary import FRAMINGS, POSES, STYLES

PROBABILITY = 0.9
TARGET_FRONTAL, TARGET_ALL = 0.95, 0.85


@dataclass(frozen=True)
class Found:
    """What MTCNN says about N pictures: probability [N] (0 when there is none) and overlap [N] with `face_boxes`."""

    probability: np.ndarray
    overlap: np.ndarray

    @property
    def rate(self) -> float:
        return float((self.probability > PROBABILITY).mean())


def draw(count: int, *, seed: int, **fixed: object) -> tuple[list[Identity], list[Shot]]:
    """`count` people of the base split, each in one shot."""
    rng = np.random.default_rng(seed)
    people = [identity("base", CLASS_NOUNS[k % 2], 5000 + k) for k in range(count)]
    return people, [sample_shot(rng, fixed=fixed) for _ in people]


def find_faces(people: Sequence[Identity], shots: Sequence[Shot], *, size: int) -> Found:
    """Render at `size` pixels and let MTCNN look for the most probable face."""
    from facenet_pytorch import MTCNN
    from PIL import Image

    detector = MTCNN(image_size=160, device="cpu", select_largest=False, post_process=False)
    pictures = render(people, shots, height=size, width=size)
    wanted = face_boxes(people, shots, size, size)
    probability, overlap = np.zeros(len(shots)), np.zeros(len(shots))
    for k, picture in enumerate(pictures):
        boxes, scores = detector.detect(Image.fromarray(picture))[:2]
        if boxes is not None and scores[0] is not None:
            best = int(np.argmax(scores))
            probability[k], overlap[k] = scores[best], intersection_over_union(boxes[best], wanted[k])
    return Found(probability=probability, overlap=overlap)


def intersection_over_union(a: np.ndarray, b: np.ndarray) -> float:
    """Overlap of two boxes (x0, y0, x1, y1) in [0, 1]."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return float(width * height / area) if area > 0 else 0.0


def main(argv: Sequence[str]) -> int:
    """Print the rates; the exit status is 1 when a target is missed."""
    options = {"people": "200", "size": "160"}
    for word in argv:
        name, _, value = word.partition("=")
        if name not in options or not value.isdigit():
            raise UserError("unknown option", expected=" ".join(f"{k}=N" for k in options), got=word, key=name)
        options[name] = value
    count, size = int(options["people"]), int(options["size"])
    people, shots = draw(count, seed=2, style="photo")
    print(f"MTCNN p > {PROBABILITY} at {size} px, {count} pictures a row", flush=True)
    frontal = find_faces(*draw(count, seed=1, style="photo", pose="front"), size=size)
    mixed = find_faces(people, shots, size=size)
    for row, found, target in (("frontal", frontal, TARGET_FRONTAL), ("all poses", mixed, TARGET_ALL)):
        overlap = np.median(found.overlap)
        print(
            f"photo, {row:<14}{found.rate:6.1%}   (target {target:.0%}; median overlap with face_boxes {overlap:.2f})"
        )
    for title, words, name in (("pose", POSES, "pose"), ("framing", FRAMINGS, "framing")):
        for word in words:
            chosen = mixed.probability[[getattr(shot, name) == word for shot in shots]]
            print(f"  {title} {word:<13}{(chosen > PROBABILITY).mean():6.1%}   ({len(chosen)})")
    for style in list(STYLES)[1:]:
        rate = find_faces(*draw(count // 2, seed=3, style=style), size=size).rate
        print(f"{style:<21}{rate:6.1%}   (all poses, {count // 2} pictures)", flush=True)
    return 0 if frontal.rate >= TARGET_FRONTAL and mixed.rate >= TARGET_ALL else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(str(error))
