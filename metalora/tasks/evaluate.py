"""`metalora evaluate`: scores of a folder of generated images, one row per image."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from metalora.core.errors import UserError
from metalora.core.manifest import FILE_NAME, read_manifest
from metalora.evaluation.embeddings import Scorers, scorer_fingerprint
from metalora.evaluation.score import score_images, write_scores
from metalora.people.benchmark import Subject, load_benchmark, load_prompts
from metalora.tasks.artifact import MANIFEST, Artifact, stored_hash
from metalora.tasks.prepare import ensure_benchmark
from metalora.tasks.progress import Board, Progress
from metalora.tasks.setting import Setting, set_threads
from metalora.tasks.study import rates_hash, study_hash


def run(cfg: DictConfig) -> None:
    """The task behind the command line."""
    setting = Setting.of(cfg)
    set_threads(setting)
    folders = [Path(setting["images"])] + ([Path(setting["base_images"])] if setting["base_images"] else [])
    with Board() as board:
        progress = board.reporter("evaluate")
        ensure_benchmark(setting, progress=progress)
        scores = evaluate(setting, images=folders, label=folders[0].name, progress=progress)
        board.say(f"scores: {scores}")


def scorers_of(setting: Setting) -> Scorers:
    """The configured scorers; each model is built only when something is not in the cache."""
    return Scorers(
        detector=lambda: setting.detector,
        embedder=lambda: setting.embedder,
        clip=lambda: setting.clip,
        fingerprint=scorer_fingerprint(setting["scorer"]),
    )


def evaluate(
    setting: Setting,
    *,
    images: Sequence[Path],
    label: str,
    subjects: Sequence[Subject] | None = None,
    progress: Progress,
) -> Path:
    """Score folders of images (the base's among them for CLIP-I); returns scores.parquet.

    Args:
        subjects: whom images may show; the whole benchmark by default.
    """
    chosen = setting["benchmark"]
    config = {
        "task": "evaluate",
        "study": study_hash(setting),
        "benchmark": {key: chosen[key] for key in ("name", "face_part", "clip_part")},
        "scorer": scorer_fingerprint(setting["scorer"]),
    }
    alike = len({folder.name for folder in images}) < len(images)
    parents = {str(folder) if alike else folder.name: _hash(folder) for folder in images}
    artifact = Artifact(setting.folder("evaluate", label, Artifact(Path(), config, parents).hash), config, parents)
    scores = artifact.folder / "scores.parquet"
    if artifact.complete and scores.is_file():
        return scores
    artifact.begin()
    prompts = load_prompts(Path(chosen["prompts"]))
    frame = score_images(
        images,
        subjects or load_benchmark(Path(chosen["root"])).subjects,
        face_prompts=prompts.ids("frontal"),
        clip_prompts=prompts.ids("clip"),
        scorers=scorers_of(setting),
        cache=setting.cache_root / "scores",
        face_part=chosen["face_part"],
        clip_part=chosen["clip_part"],
        progress=progress,
    )
    write_scores(scores, frame)
    artifact.finish(rows=len(frame), learning_rate=setting["learning_rate"], rates=rates_hash(setting))
    return scores


def _hash(folder: Path) -> str:
    """What a folder of images holds: by its manifest.json, or, for a folder of another program, by its content."""
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder}", expected=f"a folder of images with a {FILE_NAME}", key="images, base_images"
        )
    records = read_manifest(folder)
    if (folder / MANIFEST).is_file() or any(record.lora_sha256 for record in records):
        return stored_hash(folder)  # images from LoRAs are this program's own: unfinished ones are refused
    digest = hashlib.sha256()
    for path in [folder / FILE_NAME, *(folder / record.file for record in records)]:
        if path.is_file():  # scoring tells which image is gone
            digest.update(path.read_bytes())
    return digest.hexdigest()[:10]
