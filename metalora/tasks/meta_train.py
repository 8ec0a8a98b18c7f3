"""`metalora meta-train`: Stage 1. Many people of one class in, `prior.safetensors` (LoRA Meta-Down) out."""

from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import DictConfig

from metalora.adapters.artifacts import file_sha256
from metalora.core.contracts import TrainingPerson
from metalora.core.errors import UserError
from metalora.core.schedule import BucketPlan
from metalora.people.folder import photos_digest
from metalora.running.artifact import LEASE, Artifact
from metalora.running.joining import wait_for_first
from metalora.running.memory import measured, plan_training
from metalora.running.progress import Board, Progress
from metalora.running.ranks import ranks_of, take_place
from metalora.running.setting import Setting, set_threads
from metalora.tasks.prepare import encode_stage1, ensure_stage1, stage1_people
from metalora.tracking.loggers import tracked, with_logger
from metalora.tracking.tracker import Thing, Tracker
from metalora.training.priors import PRIOR, photos_of, prior_name
from metalora.training.ranks import Ranks


def run(cfg: DictConfig) -> Path:
    """The task behind the command line; returns the prior."""
    setting = Setting.of(cfg)
    set_threads(setting)
    if ranks_of(setting, class_noun=setting["class_noun"]).rank > 0:  # torchrun or srun started it; the first one tells
        return meta_train(setting, class_noun=setting["class_noun"], progress=lambda stage, done, total: None)
    with Board() as board:
        prior = meta_train(
            with_logger(setting, say=board.say),
            class_noun=setting["class_noun"],
            progress=board.reporter("meta-train"),
            say=board.say,
        )
        board.say(f"prior: {prior}")
    return prior


def artifact_of(setting: Setting, class_noun: str) -> Artifact:
    """Where the prior of a class goes and what it depends on; the people must be there."""
    people = stage1_people(setting, class_noun)
    config = {
        "task": "meta-train",
        "backbone": setting.backbone_key,
        "class_noun": class_noun,
        "people": photos_digest([photo for person in people for photo in person.photos]),
        "resolutions": list(setting.numbers("resolutions", least=1)),
        "meta_rank": setting["meta_rank"],
        "stage1": setting.stage1_recipe,
        "seed": setting["seed"],
    }
    probe = Artifact(Path(), config)
    return Artifact(setting.folder("meta-train", class_noun, probe.hash), config)


def meta_train(
    setting: Setting,
    *,
    class_noun: str,
    at: int | None = None,
    progress: Progress,
    say: Callable[[str], None] | None = None,
    started: bool = False,
) -> Path:
    """Train the prior of one class, or continue, or return the one that is there.

    With `trainer.devices` or `trainer.nodes` above 1 this is one process of several: the first one starts the others
    (unless torchrun or srun did) and writes everything.

    Args:
        at: take the prior after so many iterations, one that `stage1.prior_every` keeps; None: the final one.
        say: told one line about buckets and one about memory.
        started: this process was started by the run's first one, which owns the folder.
    """
    ranks = ranks_of(setting, class_noun=class_noun)
    take_place(setting, ranks)
    ensure_stage1(setting, class_noun=class_noun, progress=progress)
    artifact = artifact_of(setting, class_noun)
    prior = artifact.folder / PRIOR
    every, end = setting["stage1.prior_every"], setting["stage1.q_total"]
    kept = [artifact.folder / prior_name(count) for count in range(every, end + 1, every)] if every else []

    def there() -> bool:
        return artifact.complete and all(path.is_file() for path in (prior, *kept))

    wanted = prior if at is None else artifact.folder / prior_name(at)
    if wanted not in (prior, *kept):
        raise UserError(
            "Stage 1 keeps no prior at this iteration",
            expected=f"a multiple of stage1.prior_every={every}, up to {end}",
            got=str(at),
            key="prior_at, stage1.prior_every",
        )
    if ranks.rank > 0:
        if started or wait_for_first(artifact.folder / LEASE, ranks=ranks, done=there):
            _train(setting, artifact, class_noun=class_noun, ranks=ranks, progress=progress, say=say)
        return wanted
    # Only in a folder named by its hash is a file that is there the one that is wanted; and processes that wait for
    # this one only see whether all is there.
    served = wanted.is_file if at is not None and not setting["out"] and not ranks.run else there
    with artifact.making(progress, done=there, served=served, run=ranks.run) as owned:
        if owned is not None:
            _train(setting, artifact, class_noun=class_noun, ranks=ranks, progress=owned, say=say)
    return wanted


def _train(
    setting: Setting,
    artifact: Artifact,
    *,
    class_noun: str,
    ranks: Ranks,
    progress: Progress,
    say: Callable[[str], None] | None,
) -> None:
    """What is missing of a prior whose folder this process, or the first of its ranks, owns."""
    from metalora.training.meta_training import run_meta_training  # Lightning: seconds that only a training needs
    from metalora.training.speed import Speed

    prior = artifact.folder / PRIOR
    artifact.begin()
    people, texts = encode_stage1(setting, class_noun=class_noun, progress=progress)
    stage1 = setting["stage1"]
    plan = plan_training(
        setting,
        people,
        texts=texts,
        batch=stage1["batch_size"],
        identities=-(-_rows(setting, people) // ranks.world),
        rank=stage1["rank"],
        meta_rank=setting["meta_rank"],
        train_meta_down=True,
        say=say,
    )
    facts = {"class_noun": class_noun}
    first = ranks.rank == 0  # of several processes, the one that tells and writes
    with (
        tracked(setting, task="meta-train", digest=artifact.hash, folder=artifact.folder, facts=facts)
        if first
        else Tracker()
    ) as tracker:
        tracker.used(Thing("people", artifact.config["people"]))
        run_meta_training(
            setting.backbone,
            people,
            texts=texts,
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
            balance=setting.numbers("stage1.balance", least=1, count=1)[0],
            seed=setting["seed"],
            prior_every=stage1["prior_every"],
            metadata={"class_noun": class_noun},
            device=setting["trainer.device"],
            out=artifact.folder,
            checkpoint_seconds=setting["trainer.checkpoint_seconds"],
            logger=tracker.logger,
            callbacks=[Speed()],
            progress=progress,
            say=say,
            memory_plan=plan,
            ranks=ranks,
        )
        if not first:
            return
        tracker.made(Thing("prior", file_sha256(prior)))
    artifact.finish(
        **measured(setting, plan, say=say),
        people=len(people),
        images=sum(len(person.images) for person in people),
        sha256=file_sha256(prior),
    )


def _rows(setting: Setting, people: Sequence[TrainingPerson]) -> int:
    """How many people's Mid and Up lie in memory at once."""
    numbers = ("q_bucket", "q_warmup", "q_total", "batch_size", "uses_per_example")
    schedule = BucketPlan(photos_of(people), seed=setting["seed"], **{key: setting["stage1"][key] for key in numbers})
    return len(people) if setting["stage1.slots"] == "persist" else schedule.slots
