"""`metalora study build`: questions drawn from folders of images, written into one file with their pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metalora.adapters.artifacts import file_sha256
from metalora.core.errors import UserError
from metalora.evaluation.checked import Checked
from metalora.people.benchmark import KINDS, load_benchmark, load_prompts
from metalora.reporting.look import label
from metalora.reporting.user_study.design import CATEGORIES, Design, Question, draw_questions
from metalora.reporting.user_study.pool import Pool, find_folders, read_pool
from metalora.reporting.user_study.store import Store, write_study
from metalora.running.artifact import config_hash
from metalora.running.progress import Board
from metalora.running.protocol import Asked
from metalora.running.setting import Setting
from metalora.tasks.prepare import CLASSES, ensure_benchmark
from metalora.tasks.user_study import participants_of, top_up, whole

OPPONENTS = ("pulid", "instantid_lightning", "photomaker_lightning", "instantid_sdxl", "photomaker_sdxl", "ip_adapter")
OPPONENTS += ("lora_aug", "lora")
"""Whom Meta-LoRA meets in part 2 when nobody says: the paper's, else another that needs no tuning, else the nearest."""


def build(setting: Setting) -> None:
    """Draw the questions, write the file, invite the participants; the very same study is left as it is."""
    folders = find_folders([Path(folder) for folder in setting.words("images")])
    checkpoints, path = _mapping(setting, "checkpoints"), Path(setting["study"])
    with Board() as board:
        subjects = load_benchmark(ensure_benchmark(setting, progress=board.reporter("prepare"))).subjects
        prompts = Path(setting["benchmark.prompts"])
        checked = Checked(
            subjects, load_prompts(prompts).texts(), version=lambda: Asked(setting, CLASSES).version, file=prompts
        )
        pool = read_pool(folders, rank=setting["rank"], checkpoints=checkpoints, checked=checked)
        design = _design(setting, pool)
        settings = _settings(setting, design, pool)
        questions = draw_questions(design, pool=pool, subjects=subjects)
        if not questions:
            raise UserError("a study without questions", expected="questions", got="none", key="questions")
        settings["digest"] = _digest(settings, questions)
        overwrite = setting["overwrite"] is True
        if _standing(path, settings["digest"], overwrite=overwrite):
            board.say("the study is there already")
        else:
            progress = board.reporter("study")
            write_study(
                path,
                questions=questions,
                settings=settings,
                side=whole(setting, "side", most=4096),
                quality=whole(setting, "quality", most=100),
                overwrite=overwrite,
                progress=progress,
            )
        store = Store(path)
        top_up(store, participants_of(setting))
        for line in _described(questions, design, pool):
            board.say(line)
        board.say(f"study: {path} ({path.stat().st_size / 2**20:.1f} MB); next: metalora study serve study={path}")


def _design(setting: Setting, pool: Pool) -> Design:
    models = tuple(setting.words("models")) or pool.methods
    pair = setting.words("pair") or [next((m for m in OPPONENTS if m in pool.methods), OPPONENTS[0]), "meta_lora"]
    if len(set(models)) < 2 or len(set(models)) < len(models) or len(models) > 9:
        raise UserError(
            "not the models for a choice",
            expected="two to nine, each once",
            got=", ".join(models),
            key="models, images",
        )
    if len(set(pair)) != 2 or len(pair) != 2:
        raise UserError("part 2 compares two models", expected="two names", got=", ".join(map(str, pair)), key="pair")
    for key in ("questions", *(f"questions.{c}" for c in CATEGORIES), "question_prompts"):
        _mapping(setting, key)
    counts = {
        c: {part: setting.numbers(f"questions.{c}.{part}", least=0, count=1)[0] for part in ("unsplash", "ffhq")}
        for c in CATEGORIES
    }
    kinds = {c: setting.words(f"question_prompts.{c}") for c in CATEGORIES}
    if unknown := sorted({kind for given in kinds.values() for kind in given} - set(KINDS)):
        raise UserError(
            "no such kind of prompt", expected=", ".join(KINDS), got=", ".join(unknown), key="question_prompts"
        )
    if setting["order"] not in ("mixed", "parts"):
        raise UserError("no such order", expected="mixed or parts", got=str(setting["order"]), key="order")
    prompts = load_prompts(Path(setting["benchmark.prompts"]))
    return Design(
        models=models,
        pair=(str(pair[0]), str(pair[1])),
        counts=counts,
        prompt_ids={c: frozenset().union(*(prompts.ids(kind) for kind in kinds[c])) for c in CATEGORIES},
        references=whole(setting, "references", most=6),
        set_size=whole(setting, "set_size", most=6),
        seed=setting["seed"],
    )


def _mapping(setting: Setting, key: str) -> Mapping[str, Any]:
    given = setting[key]
    if not isinstance(given, Mapping):
        raise UserError("several values belong here", expected="{NAME: VALUE, ...}", got=str(given), key=key)
    return given


def _settings(setting: Setting, design: Design, pool: Pool) -> dict[str, Any]:
    """What the file remembers about the study."""
    return {
        "models": list(design.models),
        "pair": list(design.pair),
        "counts": {c: dict(n) for c, n in design.counts.items()},
        "question_prompts": setting["question_prompts"],
        "references": design.references,
        "set_size": design.set_size,
        "seed": design.seed,
        "order": setting["order"],
        "side": setting["side"],
        "quality": setting["quality"],
        "benchmark": setting["benchmark.name"],
        "facts": {method: dict(pool.facts[method]) for method in pool.methods},
    }


def _digest(settings: Mapping[str, Any], questions: tuple[Question, ...]) -> str:
    """Over all that participants would see; not over where it lies."""
    asked = [
        {
            "words": (q.category, q.identity, q.prompt),
            "photos": [file_sha256(path) for path in q.references],
            "images": {method: [file_sha256(path) for path in paths] for method, paths in q.candidates.items()},
        }
        for q in questions
    ]
    return config_hash({"settings": dict(settings), "asked": asked})


def _standing(path: Path, digest: str, *, overwrite: bool) -> bool:
    """Whether the very same study is there; another one's links may have been given out, and would die with it.

    Raises:
        UserError: another one is, and may not be replaced (`Store.require_unused`).
    """
    if not path.exists():
        return False
    store = Store(path)
    if store.settings["digest"] == digest:
        return True
    store.require_unused(overwrite=overwrite)
    return False


def _described(questions: tuple[Question, ...], design: Design, pool: Pool) -> list[str]:
    models, pair = (", ".join(map(label, methods)) for methods in (design.models, design.pair))
    lines = [f"best of {len(design.models)}: {models}; sets: {pair}"]
    for category in CATEGORIES:
        found = [q for q in questions if q.category == category]
        if found:
            people = len({q.identity for q in found})
            women = sum(q.class_noun == "woman" for q in found)
            lines.append(f"{category}: {len(found)} questions, {people} people, {women} about women")
    parts = {part: sum(q.part == part for q in questions) for part in ("unsplash", "ffhq")}
    equal = "" if parts["unsplash"] == parts["ffhq"] else " (the paper: equally many)"
    lines.append(f"from the unsplash part {parts['unsplash']} questions, from the ffhq part {parts['ffhq']}{equal}")
    return lines + [f"left out: {line}" for told in pool.left_out.values() for line in told]
