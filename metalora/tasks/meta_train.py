"""`metalora meta-train`: Stage 1. Many people of one class in, `prior.safetensors` (LoRA Meta-Down) out."""

from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from metalora.people.cache import LatentCache, prepare_people
from metalora.people.folder import scan_people
from metalora.tasks.artifact import Artifact
from metalora.tasks.loggers import training_logger
from metalora.tasks.prepare import ensure_stage1
from metalora.tasks.progress import Board, Progress
from metalora.tasks.setting import Setting, set_threads
from metalora.training.meta_training import run_meta_training


def run(cfg: DictConfig) -> None:
    """The task behind the command line."""
    setting = Setting.of(cfg)
    set_threads(setting)
    with Board() as board:
        prior = meta_train(
            setting, class_noun=setting["class_noun"], progress=board.reporter("meta-train"), say=board.say
        )
        board.say(f"prior: {prior}")


def artifact_of(setting: Setting, class_noun: str) -> Artifact:
    """Where the prior of a class goes and what it depends on."""
    config = {
        "task": "meta-train",
        "backbone": setting.backbone_key,
        "class_noun": class_noun,
        "people": {key: setting["people"][key] for key in ("kind", "count", "photos")},
        "people_root": str(setting["people.root"]) if setting["people.kind"] == "folder" else "mini",
        "resolutions": setting["resolutions"],
        "meta_rank": setting["meta_rank"],
        "stage1": setting["stage1"],
        "seed": setting["seed"],
    }
    probe = Artifact(Path(), config)
    return Artifact(setting.folder("meta-train", class_noun, probe.hash), config)


def meta_train(
    setting: Setting, *, class_noun: str, progress: Progress, say: Callable[[str], None] | None = None
) -> Path:
    """Train the prior of one class, or continue, or return the one that is there.

    Args:
        say: told one line about buckets.
    """
    artifact = artifact_of(setting, class_noun)
    prior = artifact.folder / "prior.safetensors"
    if artifact.complete and prior.is_file():
        return prior
    ensure_stage1(setting, class_noun=class_noun, progress=progress)
    root = Path(setting["people.root"]) / class_noun
    folders = scan_people(root, key="people.root").people[: setting["people.count"]]
    cache = LatentCache(setting.cache_root, setting.backbone)
    people = prepare_people(
        folders,
        mode="native",
        cache=cache,
        shapes=setting.shapes,
        detector=None,
        class_noun=class_noun,
        progress=lambda done, total: progress("encode", done, total),
    )
    stage1 = setting["stage1"]
    run_meta_training(
        setting.backbone,
        people,
        texts=cache.texts({person.caption for person in people}),
        rank=stage1["rank"],
        meta_rank=setting["meta_rank"],
        batch_size=stage1["batch_size"],
        q_bucket=stage1["q_bucket"],
        q_warmup=stage1["q_warmup"],
        q_total=stage1["q_total"],
        uses_per_example=stage1["uses_per_example"],
        learning_rate=stage1["learning_rate"],
        gradient_clip=stage1["gradient_clip"],
        slots=stage1["slots"],
        seed=setting["seed"],
        metadata={"class_noun": class_noun},
        device=setting["trainer.device"],
        out=artifact.folder,
        checkpoint_seconds=setting["trainer.checkpoint_seconds"],
        logger=training_logger(setting, name=f"meta-train-{class_noun}", folder=artifact.folder),
        progress=progress,
        say=say,
    )
    artifact.finish(people=len(people), images=sum(len(person.images) for person in people))
    return prior
