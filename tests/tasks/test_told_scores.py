"""What scores came from: the very LoRAs that the personalizations made, each a run of its own."""

from pathlib import Path
from typing import Any

from metalora.core.contracts import GeneratedImage
from metalora.core.manifest import FILE_NAME, to_line
from metalora.tasks.told_scores import tell_lineage
from metalora.tasks.tracking import Thing, Tracker, digest_of


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
