"""`metalora study build | serve | analyse | simulate`: the user study of appendix C."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from metalora.adapters.artifacts import file_sha256
from metalora.core.errors import UserError
from metalora.people.benchmark import KINDS, load_benchmark, load_prompts
from metalora.reporting.user_study.analysis import analyse, read_answers
from metalora.reporting.user_study.design import CATEGORIES, PARTS, Design, Question, draw_questions
from metalora.reporting.user_study.pool import Pool, find_folders, read_pool
from metalora.reporting.user_study.results import label, write_results
from metalora.reporting.user_study.simulate import simulate
from metalora.reporting.user_study.store import Store, write_study
from metalora.tasks.artifact import config_hash
from metalora.tasks.prepare import ensure_benchmark
from metalora.tasks.progress import Board
from metalora.tasks.report import WORLDS
from metalora.tasks.setting import Setting

OPPONENTS = ("pulid", "lora_aug", "lora")
"""Whom Meta-LoRA meets in part 2 when nobody says: the paper's, else the nearest there is."""
_SECONDS_PER_QUESTION = 15
"""Only for the time that participants are told."""


def run(cfg: DictConfig) -> None:
    """The task behind the command line."""
    setting = Setting.of(cfg)
    actions = {"build": _build, "serve": _serve, "analyse": _analyse, "simulate": _simulate}
    if setting.values["action"] not in actions:
        given = str(setting.values["action"]).replace("???", "nothing")
        raise UserError(
            "no such part of a study", expected=f"metalora study {' | '.join(actions)}", got=given, key="action"
        )
    actions[setting["action"]](setting)


def _build(setting: Setting) -> None:
    given = setting["images"]
    folders = find_folders(
        [Path(folder) for folder in (given if isinstance(given, list) else [given] if given else [])]
    )
    pool = read_pool(folders, rank=setting["rank"], checkpoints=setting["checkpoints"])
    design = _design(setting, pool)
    path, settings = Path(setting["study"]), _settings(setting, design, pool)
    with Board() as board:
        root = ensure_benchmark(setting, progress=board.reporter("prepare"))
        questions = draw_questions(design, pool=pool, subjects=load_benchmark(root).subjects)
        if not questions:
            raise UserError("a study without questions", expected="questions", got="none", key="questions")
        settings["digest"] = _digest(settings, questions)
        if _standing(path, settings["digest"]):
            board.say("the study is there already")
        else:
            progress = board.reporter("study")
            write_study(
                path,
                questions=questions,
                settings=settings,
                side=_whole(setting, "side", most=4096),
                quality=_whole(setting, "quality", most=100),
                progress=progress,
            )
        store = Store(path)
        _top_up(store, setting)
        for line in _described(questions, design, pool):
            board.say(line)
        board.say(f"study: {path} ({path.stat().st_size / 2**20:.1f} MB); next: metalora study serve study={path}")


def _design(setting: Setting, pool: Pool) -> Design:
    models = tuple(setting["models"] or pool.methods)
    pair = setting["pair"] or [next((m for m in OPPONENTS if m in pool.methods), OPPONENTS[0]), "meta_lora"]
    if len(set(models)) < 2 or len(set(models)) < len(models) or len(models) > 9:
        raise UserError(
            "not the models for a choice",
            expected="two to nine, each once",
            got=", ".join(models),
            key="models, images",
        )
    if len(set(pair)) != 2 or len(pair) != 2:
        raise UserError("part 2 compares two models", expected="two names", got=", ".join(map(str, pair)), key="pair")
    counts = {
        c: {part: setting.numbers(f"questions.{c}.{part}", least=0, count=1)[0] for part in ("unsplash", "ffhq")}
        for c in CATEGORIES
    }
    kinds = {c: k if isinstance(k := setting["question_prompts"][c], list) else [k] for c in CATEGORIES}
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
        references=_whole(setting, "references", most=6),
        set_size=_whole(setting, "set_size", most=6),
        seed=setting["seed"],
    )


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


def _standing(path: Path, digest: str) -> bool:
    """Whether the very same study is there.

    Raises:
        UserError: another one is, and has answers.
    """
    if not path.exists():
        return False
    store = Store(path)
    if store.settings["digest"] == digest:
        return True
    if store.answers():
        raise UserError(
            f"the study {path} is another one and has {store.answers()} answers",
            expected="a new file for a new study",
            key="study",
        )
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
    if pool.left_out:
        lines.append(f"left out: {pool.left_out} images of other ranks or checkpoints")
    return lines


def _top_up(store: Store, setting: Setting) -> None:
    """Invite whoever is missing, and one trial."""
    missing = _whole(setting, "participants", most=10_000) - len(store.invitations())
    if missing > 0:
        store.invite(missing)
    if not store.invitations(kind="trial"):
        store.invite(1, kind="trial")


def _serve(setting: Setting) -> None:
    from metalora.reporting.user_study.server import StudyServer

    store = Store(Path(setting["study"]))
    _top_up(store, setting)
    host, port = str(setting["host"]), setting["port"]
    try:
        server = StudyServer(store, host=host, port=int(port), consent=_consent(setting, store))
    except (OSError, OverflowError, ValueError) as error:
        raise UserError(
            f"cannot listen on {host}:{port}", expected="a free port (0 takes any)", got=str(error), key="host, port"
        ) from None
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{server.server_port}"
    print(f"study: {setting['study']}, {store.answers()} answers so far")
    if host not in ("127.0.0.1", "localhost", "::1"):
        print("note: this address is open to the network, and the network can read along (plain HTTP)")
    for kind in ("trial", "person"):
        for number, invitation in enumerate(store.invitations(kind=kind), start=1):
            name = "trial (answers do not count)" if kind == "trial" else f"participant {number}"
            print(f"{name}: {address}/p/{invitation.token}/")
    print("each link is for one person; Ctrl+C stops, the same command goes on", flush=True)
    with server:
        server.serve_forever()


def _consent(setting: Setting, store: Store) -> str:
    from importlib import resources

    if setting["consent"]:
        try:
            text = Path(setting["consent"]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                "cannot read the consent text", expected="a UTF-8 text file", got=str(error), key="consent"
            ) from None
    else:
        text = (resources.files("metalora.reporting.user_study") / "page" / "consent.txt").read_text(encoding="utf-8")
        count = sum(n for of in store.settings["counts"].values() for n in of.values())
        text = text.format(questions=count, minutes=max(1, round(count * _SECONDS_PER_QUESTION / 60)))
    return text.strip() + (f"\n\nQuestions? {setting['contact']}" if setting["contact"] else "")


def _analyse(setting: Setting) -> None:
    store = Store(Path(setting["study"]))
    answers = read_answers(store, kind="simulated" if setting["simulated"] else "person")
    analyses = [
        found
        for part in PARTS
        if (
            found := analyse(
                answers.choices,
                part=part,
                ours=setting["ours"],
                resamples=_whole(setting, "resamples", most=1_000_000),
                seed=setting["seed"],
            )
        )
    ]
    told = store.settings
    worlds = sorted({str(fact["base_model"]).split("@")[0] for fact in told["facts"].values()})
    results = write_results(
        Path(setting["out"]) if setting["out"] else Path(setting["study"]).parent,
        answers=answers,
        analyses=analyses,
        world=" and ".join(WORLDS.get(name, name) for name in worlds),
        facts={label(m): _fact(told["facts"][m]) for m in dict.fromkeys([*told["models"], *told["pair"]])}
        | {"questions": json.dumps(told["counts"]), "seed": told["seed"], "order": told["order"]},
    )
    print(results.text)
    print("written: " + ", ".join(str(path) for path in results.files))


def _fact(fact: Mapping[str, Any]) -> str:
    lora = f"rank {fact['rank']} at {fact['iterations']} iterations, " if fact["rank"] else ""
    return f"{lora}{fact['base_model']}, {fact['steps']} steps, guidance {fact['guidance']:g}"


def _simulate(setting: Setting) -> None:
    store = Store(Path(setting["study"]))
    count = _whole(setting, "participants", most=10_000)
    simulate(
        store,
        participants=count,
        preferences=setting["preferences"],
        spread=float(setting["spread"]),
        seed=setting["seed"],
    )
    print(
        f"{count} SIMULATED participants have answered; next: metalora study analyse simulated=true study={store.path}"
    )


def _whole(setting: Setting, key: str, *, most: int) -> int:
    value = setting[key]
    if type(value) is not int or not 1 <= value <= most:
        raise UserError(
            "not a number that works here", expected=f"a whole number from 1 to {most}", got=str(value), key=key
        )
    return value
