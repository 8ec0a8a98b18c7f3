"""How generated faces follow the pose of their reference photo: slope and correlation of yaw, by method.

    python -m experiments.comparison.pose outputs/turned/evaluate/*/scores.parquet

Apart for prompts that tell the pose and prompts that do not. How far off a yaw is says
`python -m metalora.miniworld.pose_error`.
"""

import sys
from pathlib import Path

import numpy as np

from experiments.comparison.compare import cells, rows_at
from metalora.core.contracts import FaceDetector
from metalora.core.errors import UserError
from metalora.evaluation.curves import on_own_base
from metalora.evaluation.score_table import PHOTO_METHODS, read_scores
from metalora.people.photos import load_photo
from metalora.perception.faces import MtcnnDetector
from metalora.perception.pose import head_pose

TOLD = "facing the camera"


def yaw_of(detector: FaceDetector, image: np.ndarray) -> float | None:
    """Degrees of the best face, positive towards the right edge; None where none is found."""
    (faces,) = detector.detect([image])
    points = faces[0].points if faces else None
    return None if points is None else head_pose(points).yaw


def copied_poses(paths: list[Path]) -> str:
    """A table: by method and kind of prompt the slope and correlation of generated yaw over the reference's.

    Images and faces are counted once each; the untouched base's meet the reference of everybody of their class.
    """
    detector, scores = MtcnnDetector(), on_own_base(read_scores(paths))
    scores = scores[scores["face_found"].notna() & ~scores["method"].isin(PHOTO_METHODS)].copy()
    of_file = {file: yaw_of(detector, load_photo(Path(file), min_side=1)) for file in sorted(set(scores["file"]))}
    of_reference = {file: yaw_of(detector, load_photo(Path(file))) for file in sorted(set(scores["reference"]))}
    scores["yaw"] = [of_file[file] for file in scores["file"]]
    scores["reference_yaw"] = [of_reference[file] for file in scores["reference"]]
    scores["told"] = scores["prompt"].str.contains(TOLD)
    rows = []
    for key in cells(scores):
        for told, own in rows_at(scores, key).groupby("told"):
            seen = own.dropna(subset=["yaw", "reference_yaw"])
            x, y = seen["reference_yaw"].to_numpy(dtype=float), seen["yaw"].to_numpy(dtype=float)
            rows.append(
                {
                    "method": key.method,
                    "iterations": key.iterations,
                    "prompt": "tells the pose" if told else "does not",
                    "images": own["file"].nunique(),
                    "faces": seen["file"].nunique(),
                    "slope": float(np.polyfit(x, y, 1)[0]),
                    "correlation": float(np.corrcoef(x, y)[0, 1]),
                    "same side": float((np.sign(x) == np.sign(y)).mean()),
                    "turned by": float(np.abs(y).mean()),
                }
            )
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    for row in rows:
        texts = [f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()]
        lines.append("| " + " | ".join(texts) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    try:
        print(copied_poses([Path(word) for word in sys.argv[1:]]))
    except UserError as error:
        raise SystemExit(f"pose: {error}") from None
