"""Run the trade-off study, in the order of `protocol.RUNS`; what results/scores holds is not run again.

    python -m experiments.tradeoff.run [only=PART] [results=DIR]

`only` takes the runs whose names begin so (rate, rank01, people, ...). Cut, it goes on where it was: the commands keep
what they finished, and every run's scores are copied to results/scores as soon as it has ended.
"""

import os
import platform
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from experiments.commands import metalora
from experiments.shown import outputs
from experiments.tradeoff import store
from experiments.tradeoff.choose import common_rate, own_rate
from experiments.tradeoff.control import main as make_control
from experiments.tradeoff.protocol import CLASSES, CLIP_PROMPTS, FRONTAL_PROMPTS, RUNS, SLOW, TEST, Run
from metalora.core.atomic import write_json
from metalora.core.errors import UserError

PRIORS = "tradeoff-priors"


def rate_of(run: Run, results: Path) -> float:
    """The learning rate of a run; those that are chosen on validation people need the runs named rate-* first."""
    if run.rate == "slow":
        return SLOW
    if run.rate == "common":
        return common_rate(results)
    if run.rate == "own":
        return own_rate(run.methods[0], results)
    return float(run.rate)


def is_there_already(run: Run, results: Path) -> bool:
    """Whether a method's own rate is one that it was run at anyway."""
    if run.rate != "own":
        return False
    there = (common_rate(results),) if run.methods == ("lora",) else (common_rate(results), SLOW)
    return rate_of(run, results) in there


def make_prior(run: Run, class_noun: str) -> Path:
    """The prior of a run for one class; one Stage 1 serves all its lengths and its control."""
    prior = run.prior
    words = ["meta-train", "experiment=mini/reproduce", f"name={PRIORS}", f"class_noun={class_noun}"]
    words += [f"seed={run.seed}", "trainer.threads=1", *prior.words]
    say = f"Stage 1: {class_noun}, seed {run.seed}, r1 {prior.meta_rank}, {prior.people} people"
    last = metalora(words, say=say)
    assert last is not None
    path = last if prior.steps == 1000 else last.parent / f"prior-{prior.steps:06d}.safetensors"
    if not prior.random and not prior.spectrum:
        return path
    change = f"random-{run.seed}" if prior.random else f"spectrum-{2 * run.seed + CLASSES.index(class_noun)}"
    control = path.with_name(f"{change.split('-')[0]}.safetensors")
    if not control.is_file():  # made again it would be another file to what was begun on it
        make_control(path, change, control)
    return control


def words_of(run: Run, *, rate: float, priors: dict[str, Path]) -> list[str]:
    """What `metalora` is told for a run."""
    return [
        "reproduce",
        "experiment=mini/reproduce",
        f"name=tradeoff-{run.name}",
        f"benchmark={run.benchmark}",
        f"protocol.frontal_prompts={FRONTAL_PROMPTS}",
        f"protocol.clip_prompts={CLIP_PROMPTS}",
        f"protocol.seeds=[{run.seed}]",
        f"seed={run.seed}",
        f"rank={run.rank}",
        f"learning_rate={rate}",
        f"meta_rank={run.prior.meta_rank}",
        f"methods=[{','.join(run.methods)}]",
        f"classes=[{','.join(run.classes)}]",
        f"iterations=[{','.join(map(str, run.iterations))}]",
        *(f"priors.{noun}={path}" for noun, path in priors.items()),
    ]


@cache
def _gallery_setting(benchmark: str) -> Any:
    """The scorers' and the benchmark's settings, as `metalora reproduce benchmark=NAME` composes them."""
    from hydra import compose, initialize_config_dir

    from metalora.cli import register_resolvers
    from metalora.configuration import conf_dir
    from metalora.running.setting import Setting

    register_resolvers()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        words = ["task=reproduce", *(f"{group}={benchmark}" for group in ("benchmark", "protocol", "scorer"))]
        return Setting.of(compose("config", overrides=words))


def _people_and_embeddings(run: Run) -> tuple[Any, Any]:
    """Everybody in a run's gallery, and what embeds their faces."""
    from metalora.evaluation.embeddings import Embeddings
    from metalora.people.benchmark import load_benchmark
    from metalora.tasks.evaluate import scorers_of

    setting = _gallery_setting(run.benchmark)
    embeddings = Embeddings(scorers_of(setting), root=setting.cache_root / "scores", batch_size=64)
    return load_benchmark(Path(setting["benchmark.root"])).subjects, embeddings


def _generated(run: Run) -> Any:
    from experiments.shown import study_of

    frame = study_of([outputs() / f"tradeoff-{run.name}"]).scores
    return frame, frame["rank"] > 0


def scores_of(run: Run) -> Any:
    """A finished run's table of scores, with whom each face was taken for."""
    from experiments.tradeoff.identify import identified

    frame, generated = _generated(run)
    found = identified(frame.loc[generated], *_people_and_embeddings(run))
    return frame.assign(identified=found.reindex(frame.index))


def keep_people(run: Run, results: Path) -> None:
    """Keep who is recognised by all pictures together, and once how photos are, where a run's pictures are there."""
    from experiments.tradeoff.identify import recognised, recognised_photos

    folder = outputs() / f"tradeoff-{run.name}" / "evaluate"
    if run.benchmark != TEST or store.people_path(run.name, results=results).is_file() or not folder.is_dir():
        return
    subjects, embeddings = _people_and_embeddings(run)
    if not (results / store.GALLERY).is_file():
        write_json(results / store.GALLERY, recognised_photos(subjects, embeddings))
    frame, generated = _generated(run)
    store.write_people(run.name, recognised(frame.loc[generated], subjects, embeddings), results=results)


def do(run: Run, results: Path) -> None:
    """Make the priors, run, and keep the scores."""
    from metalora.adapters.artifacts import file_sha256
    from metalora.running.artifact import git_revision

    began = time.monotonic()
    rate, priors = rate_of(run, results), {}
    if "meta_lora" in run.methods:
        with ThreadPoolExecutor(2) as pool:
            made = pool.map(lambda noun: make_prior(run, noun), run.classes)
            priors = dict(zip(run.classes, made, strict=True))
    stage1 = time.monotonic() - began
    words = words_of(run, rate=rate, priors=priors)
    metalora(words, say=run.name)
    cost = {
        "command": " ".join(["metalora", *(word for word in words if not word.startswith("priors."))]),
        "learning_rate": rate,
        "git": git_revision(),
        "prior": asdict(run.prior) | {noun: file_sha256(path) for noun, path in priors.items()} if priors else None,
        "stage1_seconds": round(stage1, 1),
        "seconds": round(time.monotonic() - began, 1),
        "cores": min(2, run.cells),
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": _hardware(),
        "versions": _versions(),
        "world": world(),
    }
    store.write_run(run.name, scores_of(run), cost, results=results)
    keep_people(run, results)


def do_if_missing(run: Run, results: Path) -> None:
    """Do a run unless its scores are there, or it is one that is not needed."""
    if store.scores_path(run.name, results=results).is_file():
        print(f"there: {run.name}")
        keep_people(run, results)
    elif is_there_already(run, results):
        print(f"not needed: {run.name}, its rate is one that all are run at")
    else:
        do(run, results)


@cache
def world() -> str:
    """Fingerprints of the mini world's base and autoencoder, by which results know where they belong."""
    backbone = _gallery_setting("mini_test").backbone
    return f"{backbone.fingerprint[:16]}-{backbone.encoder_fingerprint[:16]}"


def _hardware() -> dict[str, Any]:
    import torch

    instructions = torch.backends.cpu.get_cpu_capability()
    return {"machine": platform.machine(), "cores": os.cpu_count(), "instructions": instructions}


def _versions() -> dict[str, str]:
    import diffusers
    import torch

    return {"python": platform.python_version(), "torch": torch.__version__, "diffusers": diffusers.__version__}


def main(words: Sequence[str]) -> None:
    """Every run that is missing, one after another; those of one cell, which use one core, two at a time."""
    given = dict(word.split("=", 1) for word in words if "=" in word)
    if strange := [word for word in words if "=" not in word or word.split("=")[0] not in ("only", "results")]:
        raise UserError("unknown option", expected="[only=PART] [results=DIR]", got=strange[0])
    results = Path(given.get("results", store.RESULTS))
    store.check_world(world(), results=results)
    chosen = [run for run in RUNS if run.name.startswith(given.get("only", ""))]
    if not chosen:
        raise UserError("no run of that name", expected="the beginning of a run's name", got=given["only"], key="only")
    for alone, runs in groupby(chosen, key=lambda run: run.cells == 1):
        with ThreadPoolExecutor(2 if alone else 1) as pool:
            for _ in pool.map(lambda run: do_if_missing(run, results), runs):
                pass


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        raise SystemExit(f"tradeoff: {error}") from None
