"""`metalora reproduce`: the paper's comparison end to end, from the people to the report.

The work is cut into jobs: one prior per class, one job per (method, class) at this rank. As a Hydra multirun over
ranks, every job finds what the others share already made.
"""

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from metalora.adapters.artifacts import load_prior, require_prior
from metalora.core.atomic import write_json
from metalora.core.contracts import METHODS
from metalora.core.errors import UserError
from metalora.inference.generate import GenerationJob
from metalora.people.folder import PersonFolder
from metalora.reporting.report import Report
from metalora.reporting.summary import check_headline
from metalora.running.artifact import Artifact, config_hash
from metalora.running.progress import Board, Progress
from metalora.running.protocol import prompts_of, subjects_of
from metalora.running.setting import Setting
from metalora.running.study import Clock, given_priors, is_whole, study_hash, used
from metalora.running.workers import Job, run_jobs, worker_plan
from metalora.tasks.evaluate import evaluate
from metalora.tasks.generate import embedded_prompts, generate
from metalora.tasks.meta_train import artifact_of as prior_artifact
from metalora.tasks.meta_train import meta_train
from metalora.tasks.personalize import personalize
from metalora.tasks.prepare import CLASSES, ensure_benchmark, ensure_stage1
from metalora.tasks.report import facts_of, report, tell_study
from metalora.tracking.loggers import with_logger
from metalora.tracking.scores import last_scores
from metalora.training.cohorts import lora_path

REFRESH_SECONDS = 60.0
"""A report costs seconds of a core that trains: it is not written more often."""


def run(cfg: DictConfig) -> list[Path]:
    """The task behind the command line; returns the report and the score tables it stands on."""
    from hydra.core.hydra_config import HydraConfig

    setting = Setting.of(cfg)
    methods, classes = setting.words("methods", known=METHODS), setting.words("classes", known=CLASSES)
    setting = setting.changed(methods=methods, classes=classes)
    _check(setting)
    workers, threads = worker_plan(
        workers=setting["trainer.workers"], threads=setting["trainer.threads"], device=setting["trainer.device"]
    )
    started = time.monotonic()
    with Board() as board, contextlib.ExitStack() as stack:
        setting = with_logger(setting, say=board.say)
        _prepare(setting, progress=board.reporter("prepare"))
        board.finish("prepare")
        folder, study = Path(setting["paths.outputs"]) / setting["name"], study_hash(setting)
        facts = facts_of(setting, overrides=HydraConfig.get().overrides.task)
        clock = stack.enter_context(Clock(folder, study, facts, started=started).running())

        def refresh() -> Report:
            wall = clock.seconds()
            return report(folder, study=study, headline=setting["headline"], facts=facts, wall=wall, again=False)

        refreshed = started

        tables: list[Path] = []

        def finished(name: str, result: Path) -> None:
            nonlocal refreshed
            board.say(f"done: {name}")
            if name.startswith("score"):
                tables.append(result)
                board.scores(last_scores(result, of=name))
            if name.startswith("score") and time.monotonic() - refreshed > REFRESH_SECONDS:
                refresh()
                refreshed = time.monotonic()

        done = _Done(
            folder,
            {"study": study, **{key: setting[key] for key in ("rank", "methods", "classes", "iterations")}},
            given=given_priors(setting),
        )
        if not done.is_whole():
            run_jobs(jobs_of(setting), workers=workers, threads=threads, board=board, finished=finished)
            done.write(tables)
        outcome = refresh()
        tell_study(setting, folder=folder, study=study, task="reproduce")
    print(outcome.text)
    print(outcome.headline)
    print(f"report: {outcome.index}")
    return [outcome.index, *used(folder, study).scores]


class _Done:
    """Says that all jobs of a run have ended, so that the next such run need not start workers to find that out."""

    def __init__(self, folder: Path, run: Mapping[str, Any], *, given: Mapping[str, str]) -> None:
        self._folder, self._path, self._given = folder, folder / "done" / f"{config_hash(run)}.json", given.values()

    def is_whole(self) -> bool:
        """Whether the run ended before and nothing that it made is gone."""
        if not self._path.is_file():
            return False
        tables = [self._folder / name for name in json.loads(self._path.read_text())["scores"]]
        return is_whole(self._folder, tables, given=self._given)

    def write(self, tables: Sequence[Path]) -> None:
        """Remember the run's score tables."""
        write_json(self._path, {"scores": [str(table.relative_to(self._folder)) for table in tables]})


def _prepare(setting: Setting, *, progress: Progress) -> None:
    """Render what is missing; the manifest tells what it cost."""
    stage1 = _stage1_classes(setting)
    sets = {key: setting[f"{key}.root"] for key in (["benchmark", "people"] if stage1 else ["benchmark"])}
    config = {"task": "prepare", "classes": setting["classes"], "methods": setting["methods"], **sets}
    artifact = Artifact(setting.folder("prepare", setting["benchmark.name"], Artifact(Path(), config).hash), config)
    artifact.begin()
    ensure_benchmark(setting, progress=progress)
    for class_noun in stage1:
        ensure_stage1(setting, class_noun=class_noun, progress=progress)
    if not artifact.complete:
        artifact.finish()


def _stage1_classes(setting: Setting) -> list[str]:
    """The classes whose prior is trained here: Meta-LoRA is to run, and no prior was given."""
    return [
        noun for noun in setting["classes"] if "meta_lora" in setting["methods"] and not setting["priors"].get(noun)
    ]


def jobs_of(setting: Setting) -> list[Job]:
    """The jobs of one rank. The base comes first (CLIP-I compares with it), then the priors: most waits for them."""
    values, rank = setting.values, setting["rank"]
    jobs = [Job(f"score base {noun}", score_base, (values, noun), priority=4) for noun in setting["classes"]]
    stage1 = _stage1_classes(setting)
    for noun in setting["classes"]:
        if noun in stage1:
            jobs.append(Job(f"meta-train {noun}", _meta_train, (values, noun), priority=3))
        for method in setting["methods"]:
            needs = [f"score base {noun}"] + (
                [f"meta-train {noun}"] if noun in stage1 and method == "meta_lora" else []
            )
            name = f"score {method} rank {rank} {noun}"
            jobs.append(Job(name, score_method, (values, method, noun), needs=tuple(needs), priority=2))
    return jobs


def _meta_train(values: Mapping[str, Any], class_noun: str, *, progress: Progress) -> Path:
    return meta_train(Setting(values), class_noun=class_noun, progress=progress)


def score_base(values: Mapping[str, Any], class_noun: str, *, progress: Progress) -> Path:
    """Images of the untouched base and their scores: where every method starts, and what CLIP-I compares with."""
    setting = Setting(values)
    folder = generate(setting, jobs=base_jobs(setting, class_noun), label=f"base-{class_noun}", progress=progress)
    return evaluate(
        setting,
        images=[folder],
        subjects=subjects_of(setting, class_noun),
        label=f"base-{class_noun}",
        progress=progress,
    )


def score_method(values: Mapping[str, Any], method: str, class_noun: str, *, progress: Progress) -> Path:
    """One method at one rank on one class: personalize, generate at every checkpoint, score."""
    setting = _with_method(Setting(values), method)
    subjects = subjects_of(setting, class_noun)
    people = [PersonFolder(subject.identity, subject.class_noun, (subject.reference,)) for subject in subjects]
    prior = _prior(setting, class_noun) if method == "meta_lora" else None
    # Before the denoiser is there: text encoders and denoiser never share memory.
    embedded_prompts(setting, {prompt.text for subject in subjects for prompt in prompts_of(setting, subject)})
    label = f"{setting['benchmark.name']}-{class_noun}"
    loras = personalize(
        setting, people=people, class_noun=class_noun, label=label, prior=prior, face="largest", progress=progress
    )
    jobs = [
        GenerationJob(
            identity=subject.identity,
            class_noun=class_noun,
            method=method,
            rank=setting["rank"],
            iterations=iterations,
            lora=lora_path(loras, subject.identity, iterations),
            prompt_id=prompt.id,
            prompt=prompt.text,
            seed=seed,
            reference=subject.reference,
        )
        for iterations in setting.iterations
        for subject in subjects
        for prompt in prompts_of(setting, subject)
        for seed in setting.numbers("protocol.seeds", least=0)
    ]
    label = f"{method}-r{setting['rank']}-{class_noun}"
    images = generate(setting, jobs=jobs, label=label, progress=progress)
    base = generate(setting, jobs=base_jobs(setting, class_noun), label=f"base-{class_noun}", progress=progress)
    return evaluate(setting, images=[images, base], subjects=subjects, label=label, progress=progress)


def _prior(setting: Setting, class_noun: str) -> Path:
    given = setting["priors"].get(class_noun)
    return Path(given) if given else prior_artifact(setting, class_noun).folder / "prior.safetensors"


def base_jobs(setting: Setting, class_noun: str) -> list[GenerationJob]:
    """The untouched base on every prompt of a class: no person is in them, so each is drawn once."""
    prompts = {p.id: p for subject in subjects_of(setting, class_noun) for p in prompts_of(setting, subject)}
    return [
        GenerationJob("base", class_noun, "base", 0, 0, None, prompt.id, prompt.text, seed)
        for prompt in prompts.values()
        for seed in setting.numbers("protocol.seeds", least=0)
    ]


def _with_method(setting: Setting, name: str) -> Setting:
    return setting.changed(
        method={"name": name, "crops": name != "lora", "flips": name != "lora", "prior": name == "meta_lora"}
    )


def _check(setting: Setting) -> None:
    told = setting["headline"]
    check_headline(target=told["target"], method=told["method"], scored=setting["methods"])
    if setting["out"]:
        raise UserError(
            "reproduce makes many folders",
            expected="name=NAME for outputs/NAME, or paths.outputs=DIR",
            got=str(setting["out"]),
            key="out",
        )
    for noun, path in setting["priors"].items():
        if path:
            _check_prior(Path(path), class_noun=noun, meta_rank=setting["meta_rank"])
    if "meta_lora" in setting["methods"] and setting["rank"] > setting["meta_rank"]:
        raise UserError(
            "the rank is larger than Meta-Down's",
            expected=f"rank of at most meta_rank = {setting['meta_rank']}",
            got=str(setting["rank"]),
            key="rank",
        )


def _check_prior(path: Path, *, class_noun: str, meta_rank: int) -> None:
    """What can be told without the base model, before any work is begun."""
    require_prior(path, key=f"priors.{class_noun}")
    prior = load_prior(path)
    got = (prior.metadata.get("class_noun", class_noun), prior.meta_rank)
    if got != (class_noun, meta_rank):
        raise UserError(
            f"{path} is not the prior needed",
            expected=f"one of class {class_noun} with meta_rank {meta_rank}",
            got=f"class {got[0]}, meta_rank {got[1]}",
            key=f"priors.{class_noun}, meta_rank",
        )
