"""How far a face is turned, from MTCNN's five landmarks; calibrated on rendered people whose pose is known.

    python -m experiments.comparison.pose            # fits again, and the error on people it was not fitted on
    python -m experiments.comparison.pose outputs/turned/evaluate/*/scores.parquet    # pose copying by method

The second reports per method how the yaw of generated faces follows the yaw of the reference photo: slope and
correlation over images, apart for prompts that tell the pose and prompts that do not.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from metalora.evaluation.curves import on_own_base
from metalora.evaluation.score_table import PHOTO_METHODS, read_scores
from metalora.miniworld.identity import generator_from
from metalora.miniworld.population import CLASS_NOUNS, people
from metalora.miniworld.renderer import render
from metalora.miniworld.shots import sample_shot
from metalora.people.photos import load_photo

TOLD = "facing the camera"
_SIDE, _PEOPLE, _PHOTOS = 160, 12, 10


COEFFICIENTS = (137.2, -206.7)
"""Degrees per offset and per its cube; fitted by `fit` on six men and six women turned by up to 45 degrees."""


class YawEstimator:
    """Degrees from the nose's offset between the eyes, by an odd cubic; positive is towards the right edge."""

    def __init__(self, coefficients: tuple[float, float] = COEFFICIENTS) -> None:
        self.coefficients, self.finder = coefficients, _finder()

    def yaw(self, image: np.ndarray) -> float | None:
        """Degrees, or None where no face is found. Faces turned beyond the calibration are cut at 60."""
        offset = _offset(self.finder, image)
        if offset is None:
            return None
        linear, cubic = self.coefficients
        return float(np.clip(linear * offset + cubic * offset**3, -60, 60))


def fit(finder: Any) -> tuple[float, float]:
    """Least squares over rendered validation people."""
    offsets, yaws = _measured(finder, first=0)
    linear, cubic = np.linalg.lstsq(np.stack([offsets, offsets**3], axis=1), yaws, rcond=None)[0]
    return float(linear), float(cubic)


def _finder() -> Any:
    import torch
    from facenet_pytorch import MTCNN

    return MTCNN(keep_all=False, select_largest=True, device=torch.device("cpu"))


def _offset(finder: Any, image: np.ndarray) -> float | None:
    """The nose's place between the eyes along the line through them, in distances of the eyes; 0 is the middle."""
    picture = Image.fromarray(image)
    scale = max(1.0, _SIDE / min(picture.size))
    if scale > 1:
        size = (round(picture.width * scale), round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    try:
        _, probabilities, points = finder.detect(picture, landmarks=True)
    except RuntimeError:  # its way of saying that every candidate lies outside the picture
        return None
    if points is None or probabilities[0] is None or probabilities[0] < 0.9:
        return None
    left, right, nose = (np.asarray(points[0][k], dtype=float) for k in (0, 1, 2))
    line = right - left
    return float(np.dot(nose - (left + right) / 2, line) / np.dot(line, line))


def _measured(finder: Any, *, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and true yaws of rendered photos; people from number `first` on."""
    offsets, yaws = [], []
    for class_noun in CLASS_NOUNS:
        for person in people("validation", class_noun, count=_PEOPLE // 2, first=first):
            rng = generator_from(f"yaw/{person.key}")
            shots = [
                sample_shot(rng, fixed={"style": "photo", "yaw": float(rng.uniform(-45, 45)), "scale": 0.7})
                for _ in range(_PHOTOS)
            ]
            pictures = render([person] * len(shots), shots, height=_SIDE, width=_SIDE)
            for shot, picture in zip(shots, pictures, strict=True):
                offset = _offset(finder, picture)
                if offset is not None:
                    offsets.append(offset)
                    yaws.append(shot.yaw)
    return np.array(offsets), np.array(yaws)


def copied_poses(paths: list[Path]) -> str:
    """A table: by method and kind of prompt the slope and correlation of generated yaw over the reference's."""
    estimator, scores = YawEstimator(), on_own_base(read_scores(paths))
    scores = scores[scores["face_found"].notna() & ~scores["method"].isin(PHOTO_METHODS)].copy()
    of_file = {file: estimator.yaw(load_photo(Path(file), min_side=1)) for file in sorted(set(scores["file"]))}
    of_reference = {file: estimator.yaw(load_photo(Path(file))) for file in sorted(set(scores["reference"]))}
    scores["yaw"] = [of_file[file] for file in scores["file"]]
    scores["reference_yaw"] = [of_reference[file] for file in scores["reference"]]
    scores["told"] = scores["prompt"].str.contains(TOLD)
    rows = []
    for (method, iterations, told), own in scores.groupby(["method", "iterations", "told"]):
        seen = own.dropna(subset=["yaw", "reference_yaw"])
        x, y = seen["reference_yaw"].to_numpy(dtype=float), seen["yaw"].to_numpy(dtype=float)
        rows.append(
            {
                "method": method,
                "iterations": iterations,
                "prompt": "tells the pose" if told else "does not",
                "images": len(own),
                "faces": len(seen),
                "slope": float(np.polyfit(x, y, 1)[0]),
                "correlation": float(np.corrcoef(x, y)[0, 1]),
                "same side": float((np.sign(x) == np.sign(y)).mean()),
                "turned by": float(np.abs(y).mean()),
            }
        )
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    for row in rows:
        cells = [f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(paths: list[Path]) -> None:
    """The calibration's error, or the table."""
    if paths:
        print(copied_poses(paths))
        return
    linear, cubic = fit(finder := _finder())
    offsets, yaws = _measured(finder, first=_PEOPLE // 2)
    errors = np.abs(linear * offsets + cubic * offsets**3 - yaws)
    found = f"{len(yaws)} of {_PEOPLE * _PHOTOS} faces"
    print(f"coefficients {linear:.1f} and {cubic:.1f}")
    print(f"{found}: median error {np.median(errors):.1f} degrees, 90% within {np.percentile(errors, 90):.1f}")


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])
