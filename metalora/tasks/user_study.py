"""`metalora study build | serve | analyse | simulate`: the user study of appendix C."""

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from metalora.core.errors import UserError
from metalora.reporting.user_study.design import PARTS
from metalora.reporting.user_study.store import Store
from metalora.running.setting import Setting
from metalora.tasks.user_study_links import LOOPBACK, links_begin

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
    try:
        actions[setting["action"]](setting)
    except sqlite3.Error as error:
        raise UserError("the study's file cannot be used", got=str(error), key="study") from None


def _build(setting: Setting) -> None:
    from metalora.tasks.user_study_build import build  # what only building needs takes seconds to import

    build(setting)


def _serve(setting: Setting) -> None:
    from metalora.reporting.user_study.server import StudyServer

    store = Store(Path(setting["study"]))
    host, port = str(setting["host"]), whole(setting, "port", least=0, most=65_535)
    top_up(store, participants_of(setting, default=0))
    try:
        server = StudyServer(store, host=host, port=port, consent=_consent(setting, store))
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot listen on {host}:{port}", expected="a free port (0 takes any)", got=str(error), key="host, port"
        ) from None
    with server:
        address = str(setting["address"]) if setting["address"] else None
        begin = links_begin(host, port=server.server_port, address=address)
        print(f"study: {setting['study']}, {store.answers()} answers so far")
        if host not in LOOPBACK:
            print(f"note: {host}:{server.server_port} is open to the network, which can read along (plain HTTP)")
        for kind in ("trial", "person"):
            for number, invitation in enumerate(store.invitations(kind=kind), start=1):
                name = "trial (answers do not count)" if kind == "trial" else f"participant {number}"
                print(f"{name}: {begin}/p/{invitation.token}/")
        print("each link is for one person; Ctrl+C stops, the same command goes on", flush=True)
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
    from metalora.reporting.look import label
    from metalora.reporting.user_study.analysis import analyse, asked_about, read_answers
    from metalora.reporting.user_study.results import write_results
    from metalora.tasks.report import world_of

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
                resamples=whole(setting, "resamples", most=1_000_000),
                seed=setting["seed"],
            )
        )
    ]
    told = store.settings
    facts = {model: told["facts"][model] for model in asked_about(answers.choices)}
    results = write_results(
        Path(setting["out"]) if setting["out"] else Path(setting["study"]).parent,
        answers=answers,
        analyses=analyses,
        world=world_of(fact["base_model"].split("@")[0] for fact in facts.values()),
        facts={label(model): _fact(fact) for model, fact in facts.items()}
        | {"questions": json.dumps(told["counts"]), "seed": told["seed"], "order": told["order"]},
    )
    print(results.text)
    print("written: " + ", ".join(str(path) for path in results.files))


def _fact(fact: Mapping[str, Any]) -> str:
    lora = f"rank {fact['rank']} at {fact['iterations']} iterations, " if fact["rank"] else ""
    return f"{lora}{fact['base_model']}, {fact['steps']} steps, guidance {fact['guidance']:g}"


def _simulate(setting: Setting) -> None:
    from metalora.reporting.user_study.simulate import simulate

    store = Store(Path(setting["study"]))
    count = participants_of(setting)
    simulate(
        store,
        participants=count,
        preferences=setting["preferences"],
        spread=setting["spread"],
        seed=setting["seed"],
    )
    print(
        f"{count} SIMULATED participants have answered; next: metalora study analyse simulated=true study={store.path}"
    )


def top_up(store: Store, participants: int) -> None:
    """Invite whoever is missing, and one trial."""
    missing = participants - len(store.invitations())
    if missing > 0:
        store.invite(missing)
    if not store.invitations(kind="trial"):
        store.invite(1, kind="trial")


def participants_of(setting: Setting, *, default: int = 25) -> int:
    """How many participants were asked for; the default is the paper's number."""
    return default if setting["participants"] is None else whole(setting, "participants", most=10_000)


def whole(setting: Setting, key: str, *, least: int = 1, most: int) -> int:
    """A whole number from `least` to `most` under a key, or UserError."""
    value = setting[key]
    if type(value) is not int or not least <= value <= most:
        raise UserError(
            "not a number that works here", expected=f"a whole number from {least} to {most}", got=str(value), key=key
        )
    return value
