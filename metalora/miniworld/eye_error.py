"""How often eyes that are open, closed or behind dark glasses are told apart, on rendered people.

The renderer knows no closed eyes and no dark glasses, so both are painted over the eyes of people who look.
`python -m metalora.miniworld.eye_error [people=200]`
"""

import sys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from metalora.core.contracts import FivePoints
from metalora.core.errors import UserError
from metalora.miniworld.population import CLASS_NOUNS, identity
from metalora.miniworld.renderer import render
from metalora.miniworld.shots import sample_shot
from metalora.perception.eyes import eyes_visible
from metalora.perception.faces import MtcnnDetector


def with_closed_eyes(image: np.ndarray, points: FivePoints) -> np.ndarray:
    """Lids of the cheeks' colour with a line of lashes over both eyes."""
    picture = Image.fromarray(image)
    draw, unit = ImageDraw.Draw(picture), _unit(points)
    for x, y in points[:2]:
        lid = _colour(image, x, y + 16 * unit)
        draw.ellipse((x - 10 * unit, y - 5 * unit, x + 10 * unit, y + 5 * unit), fill=lid)
        lashes = tuple(value // 3 for value in lid)
        box = (x - 8 * unit, y - 4 * unit, x + 8 * unit, y + 3 * unit)
        draw.arc(box, 20, 160, fill=lashes, width=max(1, round(unit)))
    return np.asarray(picture)


def with_dark_glasses(image: np.ndarray, points: FivePoints) -> np.ndarray:
    """Two nearly black lenses."""
    picture = Image.fromarray(image)
    draw, unit = ImageDraw.Draw(picture), _unit(points)
    for x, y in points[:2]:
        draw.ellipse((x - 14 * unit, y - 9 * unit, x + 14 * unit, y + 12 * unit), fill=(20, 20, 24))
    return np.asarray(picture)


def _unit(points: FivePoints) -> float:
    """A pixel of the aligned face, on which the eyes are 35 apart."""
    (x0, y0), (x1, y1) = points[:2]
    return float(np.hypot(x1 - x0, y1 - y0)) / 35


def _colour(image: np.ndarray, x: float, y: float) -> tuple[int, int, int]:
    row, column = (min(max(round(v), 2), side - 3) for v, side in zip((y, x), image.shape[:2], strict=True))
    red, green, blue = np.median(image[row - 2 : row + 3, column - 2 : column + 3].reshape(-1, 3), axis=0)
    return int(red), int(green), int(blue)


def main(argv: Sequence[str]) -> int:
    """Print how often each kind of eye is said to be visible."""
    options = {"people": "200"}
    for word in argv:
        name, _, value = word.partition("=")
        if name not in options or not value.isdigit():
            raise UserError("unknown option", expected="people=N", got=word, key=name)
        options[name] = value
    count, rng = int(options["people"]), np.random.default_rng(12)
    people = [identity("base", CLASS_NOUNS[k % 2], 7600 + k) for k in range(count)]
    fixed = {"style": "photo", "pitch": 0.0}
    shots = [
        sample_shot(rng, fixed=fixed | {"yaw": float(rng.uniform(-30, 30)), "scale": float(rng.uniform(0.5, 1.0))})
        for _ in people
    ]
    detector, seen = MtcnnDetector(), {"open": [], "closed": [], "dark glasses": []}
    for picture in render(people, shots, height=256, width=256):
        (faces,) = detector.detect([picture])
        if faces and (points := faces[0].points) is not None:
            seen["open"].append(eyes_visible(picture, points))
            seen["closed"].append(eyes_visible(with_closed_eyes(picture, points), points))
            seen["dark glasses"].append(eyes_visible(with_dark_glasses(picture, points), points))
    for name, pairs in seen.items():
        both = np.mean([all(pair) for pair in pairs])
        print(f"{name:<13} both eyes said to be visible in {both:.0%} of {len(pairs)} photos")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(str(error))
