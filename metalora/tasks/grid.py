"""A cell of the paper's grid: a method at a rank on the benchmark's people of one class, scored where it is trained."""

from pathlib import Path

from metalora.core.errors import UserError
from metalora.people.folder import PersonFolder
from metalora.running.progress import Board, Progress
from metalora.running.protocol import subjects_of
from metalora.running.setting import Setting
from metalora.running.shards import shard_of
from metalora.tasks.meta_train import meta_train
from metalora.tasks.personalize import personalize
from metalora.tasks.prepare import CLASSES, ensure_benchmark
from metalora.tasks.reproduce import score_method
from metalora.training.cohorts import lora_path

BENCHMARK = "benchmark"
"""What `image=` says instead of a path."""


def personalize_benchmark(setting: Setting, *, board: Board) -> list[Path]:
    """Personalize the benchmark's people of `class_noun`; with `score`, also draw and score them. Returns the files.

    The prior is trained first where none is given; of several cells that want one, the first trains it.
    """
    noun, method, progress = setting["class_noun"], setting["method.name"], board.reporter("personalize")
    if noun not in CLASSES:
        raise UserError("unknown class", expected=" or ".join(CLASSES), got=str(noun), key="class_noun")
    ensure_benchmark(setting, progress=progress)
    if setting["method.prior"]:
        prior = _prior(setting, noun, progress=progress)
        setting = setting.changed(priors={**setting["priors"], noun: str(prior)})
    if setting["score"]:
        if setting["shard"]:
            raise UserError(
                "scores are of the whole benchmark", expected="score=false with shard=I/N", got="both", key="shard"
            )
        table = score_method(setting.values, method, noun, progress=progress)
        board.say(f"scores: {table}")
        return [table]
    people = [PersonFolder(s.identity, s.class_noun, (s.reference,)) for s in subjects_of(setting, noun)]
    shard = shard_of(setting, people)
    folder = personalize(
        setting,
        people=shard.people,
        class_noun=noun,
        label=f"{setting['benchmark.name']}-{noun}{shard.label}",
        prior=Path(setting["priors"][noun]) if setting["method.prior"] else None,
        face="largest",
        progress=progress,
        say=board.say,
    )
    return [lora_path(folder, one.identity, count) for one in shard.people for count in setting.iterations]


def _prior(setting: Setting, class_noun: str, *, progress: Progress) -> Path:
    """The prior of a class: the given one, or Stage 1's, after `prior_at` iterations of it."""
    given = setting["prior"] or setting["priors"].get(class_noun)
    if given and setting["prior_at"]:
        raise UserError("a prior is given", expected="prior_at=null", got=str(setting["prior_at"]), key="prior_at")
    if given:
        return Path(given)
    at = None if setting["prior_at"] is None else setting.numbers("prior_at", least=1, count=1)[0]
    return meta_train(setting, class_noun=class_noun, at=at, progress=progress)
