"""What scores came from: the very LoRAs that the personalizations made, each a run of its own; and what they say."""

import csv
from pathlib import Path
from typing import Any

import pandas as pd

from metalora.core.contracts import GeneratedImage
from metalora.core.manifest import FILE_NAME, to_line
from metalora.evaluation.score_table import unscored_row
from metalora.people.benchmark import Subject
from metalora.tracking.scores import COLUMNS, FILE, last_scores, tell_cells, tell_lineage
from metalora.tracking.tracker import Thing, Tracker, digest_of


class Heard:
    """A dashboard that keeps the edges of the lineage."""

    def __init__(self) -> None:
        self.ends: list[Thing] = []

    def used(self, thing: Thing) -> None:
        self.ends.append(thing)

    def made(self, thing: Thing, *, parents: Any) -> None:
        assert list(parents) == self.ends and thing.kind == "scores"

    def finish(self, *, status: int) -> None:
        assert status == 0


def drawn(folder: Path, *, loras: Path, people: list[str], iterations: tuple[int, ...] = (1, 2)) -> Path:
    """A folder of images, two per LoRA, and one of the untouched base."""
    options: dict[str, Any] = {"base_model": "tiny", "steps": 1, "guidance": 1.0, "size": (64, 64), "prompt_id": "p"}
    images = [GeneratedImage(file="base.png", method="base", identity="base", seed=0, **options)]
    for identity in people:
        for count in iterations:
            made = {
                "lora": str(loras / identity / f"lora-{count:06d}.safetensors"),
                "lora_sha256": f"{identity}{count}",
            }
            for seed in (0, 1):
                name, more = f"{identity}-{count}-{seed}.png", {"rank": 1, "iterations": count, **made}
                images.append(GeneratedImage(file=name, method="lora", identity=identity, seed=seed, **more, **options))
    folder.mkdir()
    (folder / FILE_NAME).write_text("".join(to_line(image) for image in images))
    return folder


def test_men_and_women_scored_together_come_from_two_personalizations(tmp_path: Path) -> None:
    women = drawn(tmp_path / "women", loras=Path("personalize/lora-r1-woman-a"), people=["ann", "eve"])
    men = drawn(tmp_path / "men", loras=Path("personalize/lora-r1-man-b"), people=["ben"])
    heard = Heard()
    with Tracker(heard) as tracker:
        tell_lineage(tracker, [women, men], digest="abc")
    made = [(["ann1", "eve1"], 1), (["ann2", "eve2"], 2), (["ben1"], 1), (["ben2"], 2)]  # as each run's `made` tells
    assert [(thing.digest, thing.facts) for thing in heard.ends] == [
        (digest_of(hashes), (("iterations", count),)) for hashes, count in made
    ]


def test_a_method_of_another_program_may_have_any_name(tmp_path: Path) -> None:
    """A comma, a quote: every number stays in its column, and other rows are as without."""
    ann = Subject("ann", "woman", tmp_path / "ann.png", (), "ffhq")
    options: dict[str, Any] = {"identity": "ann", "base_model": "tiny", "steps": 1, "guidance": 1.0, "size": (64, 64)}
    rows = []
    for seed, method in enumerate(('mine, "tuned"', "lora")):
        image = GeneratedImage(file=f"{seed}.png", method=method, prompt_id="p", seed=seed, rank=1, **options)
        rows.append(unscored_row(image, tmp_path / image.file, ann) | {"clip_t": 0.75})
    for name in ("alone", "both"):
        tell_cells(Tracker(), pd.DataFrame(rows[1:] if name == "alone" else rows), folder=tmp_path / name)
    alone, both = ((tmp_path / name / FILE).read_text() for name in ("alone", "both"))
    header, lora = alone.splitlines()
    assert header == ",".join(COLUMNS) and lora == "lora,1,0,woman,1,1,,,0.75,,"
    assert both.startswith(alone)
    mine = list(csv.DictReader(both.splitlines()))[1]
    assert mine["method"] == 'mine, "tuned"' and mine["images"] == "1" and mine["eval/clip_t"] == "0.75"
    assert "CLIP-T 75.0" in last_scores(tmp_path / "both" / "scores.parquet", of="score mine")
