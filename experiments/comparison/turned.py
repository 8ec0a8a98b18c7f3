"""Mini-PHD with turned references: of every person the photo that is turned furthest comes first.

    python -m experiments.comparison.turned outputs/data/mini_phd outputs/data/mini_phd_turned

On Mini-PHD the references look into the camera, as the frontal prompts do: a copied pose costs nothing. Here it does.
"""

import json
import shutil
import sys
from pathlib import Path

from experiments.comparison.pose import yaw_of
from metalora.core.errors import UserError
from metalora.people.benchmark import load_benchmark
from metalora.people.photos import load_photo
from metalora.perception.faces import MtcnnDetector


def main(source: Path, target: Path) -> None:
    """Copy the multi-photo people with another photo first; the chosen yaws go to turned.json."""
    if (target / "identities.json").is_file():
        return
    detector, chosen, nouns = MtcnnDetector(), {}, {}
    for subject in load_benchmark(source).subjects:
        if subject.part != "unsplash":
            continue
        photos = [subject.reference, *subject.test_photos]
        yaws = [yaw_of(detector, load_photo(photo)) for photo in photos]
        first = max(range(len(photos)), key=lambda k: abs(yaws[k] or 0.0))
        folder = target / "unsplash" / subject.identity
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photos[first], folder / "00.png")
        for number, photo in enumerate([p for k, p in enumerate(photos) if k != first], start=1):
            shutil.copyfile(photo, folder / f"{number:02d}.png")
        chosen[subject.identity] = {"photo": photos[first].name, "yaw": round(float(yaws[first] or 0.0), 1)}
        nouns[subject.identity] = subject.class_noun
    (target / "turned.json").write_text(json.dumps(chosen, indent=1) + "\n")
    (target / "identities.json").write_text(json.dumps(nouns, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except UserError as error:
        raise SystemExit(f"turned: {error}") from None
