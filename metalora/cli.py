"""The command line: `metalora TASK key=value ...`, one Hydra application. Floor 4: nothing imports it."""

import errno
import importlib
import io
import os
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from metalora.configuration import PACKAGE, conf_dir, general_help, has_actions, task_help, task_names

EXIT_BAD_INPUT = 2
PIPE_CLOSED = 141
FREE_TEXT = {"prompt", "image", "prior", "priors.man", "priors.woman", "lora", "images", "base_images", "scores", "out"}
FREE_TEXT |= {"ip_adapter.adapter", "ip_adapter.face"}
FREE_TEXT |= {"identity", "backbone.path", "people.root", "benchmark.root", "init_image", "mask", "samples", "push"}
FREE_TEXT |= {"study", "consent", "contact"}
FREE_TEXT |= {"path", "baseline.python", "baseline.settings.code"}
"""Keys whose value is somebody's sentence or file name: commas and brackets in it are no syntax."""


COMPANIONS = ("protocol", "scorer")


def main(argv: list[str] | None = None) -> None:
    """Entry point of the `metalora` command.

    A first bare word becomes `task=WORD` (Hydra itself rejects bare words), a second one `action=WORD` where the task
    has actions. Bad input of any kind, a wrong configuration key included, ends in one line on stderr and exit
    status 2.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and "=" not in words[0] and not words[0].startswith("-"):
        if words[0] not in task_names():
            _fail(f"unknown task; expected one of {', '.join(task_names())}; got {words[0]}")
        if "--help" in words or "-h" in words:
            print(task_help(words[0]))
            return
        if len(words) > 1 and re.fullmatch(r"[a-z-]+", words[1]) and words[1][0] != "-" and has_actions(words[0]):
            words[1] = f"action={words[1]}"
        words[0] = f"task={words[0]}"
    if not words or words[0] in ("--help", "-h") or not any(word.startswith("task=") for word in words):
        print(general_help())
        raise SystemExit(0 if words[:1] in (["--help"], ["-h"]) else EXIT_BAD_INPUT)
    multirun = [word for word in words if word in ("-m", "--multirun")]  # Hydra's parser wants it before every override
    overrides = [word for word in words if word not in multirun]
    overrides = with_companions(overrides)
    try:
        _run_hydra(multirun + (overrides if multirun else [quoted(word) for word in overrides]))
    except KeyboardInterrupt:  # before the task or after it
        _stopped(130)


def with_companions(words: list[str]) -> list[str]:
    """Add the protocol and the scorer of a benchmark that is named, unless they are named too: real photos must not be
    scored by the mini world's models. (Hydra cannot follow `${benchmark}`, which follows `${backbone}` itself.)
    """
    named = {key: value for key, _, value in (word.partition("=") for word in words)}
    chosen = named.get("benchmark", "")
    known = [group for group in COMPANIONS if (conf_dir() / group / f"{chosen}.yaml").is_file()]
    return words + [f"{group}={chosen}" for group in known if group not in named]


def quoted(word: str) -> str:
    """`key=value` with the value of a `FREE_TEXT` key in quotes where Hydra's grammar would stumble over it, or read
    a number or a truth value.

    Lists, interpolations, null and what is quoted already stay as they are.
    """
    key, _, value = word.partition("=")
    number = re.fullmatch(r"[+-]?[\d_.]+(e[+-]?\d+)?|[+-]?(inf|nan)|true|false", value, re.IGNORECASE)
    plain = re.fullmatch(r"[\w /.:@%*?|+-]*", value, re.ASCII) and not number
    given = value[:1] + value[-1:] in ("[]", "''", '""')  # a list, or quoted
    if key not in FREE_TEXT or plain or given or "${" in value:
        return word
    escaped = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), value)
    return f"{key}='{escaped}'"


def _fail(message: str) -> None:
    print(f"metalora: {message}", file=sys.stderr)
    raise SystemExit(EXIT_BAD_INPUT)


def register_resolvers() -> None:
    """OmegaConf resolvers of the configuration: `package_path:` and `conf_path:`."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("package_path", lambda path: str(PACKAGE / path), replace=True)
    OmegaConf.register_new_resolver("conf_path", lambda path: str(conf_dir() / path), replace=True)


def _run_hydra(words: list[str]) -> None:
    import hydra
    from omegaconf import DictConfig

    register_resolvers()
    started = False

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    def application(cfg: DictConfig) -> None:
        nonlocal started
        started = True
        sys.stderr = stderr
        _guarded(lambda: _task(cfg), debug=bool(cfg.debug))

    sys.argv = [sys.argv[0], *words]
    if "debug=true" in words:
        os.environ["HYDRA_FULL_ERROR"] = "1"
    complaint, stderr = io.StringIO(), sys.stderr
    sys.stderr = complaint  # Hydra explains a bad configuration over many lines; people get one
    try:
        application()
    except SystemExit as stop:
        if stop.code == 1 and not started:
            sys.stderr = stderr
            _fail(one_line(complaint.getvalue()))
        raise
    finally:
        if sys.stderr is complaint:
            sys.stderr = stderr
            stderr.write(complaint.getvalue())


def one_line(complaint: str) -> str:
    """Hydra's complaint about a configuration, without its boilerplate, as one line."""
    boring = (
        "Set the environment variable",
        "Config search path",
        "provider=",
        "object_type=",
        "full_key:",
        "To append",
    )
    lines = [line.strip() for line in complaint.splitlines()]
    return "; ".join(line for line in lines if line and not line.startswith(boring))


def _task(cfg: object) -> None:
    module = importlib.import_module(f"metalora.tasks.{cfg.task.replace('-', '_')}")  # type: ignore[attr-defined]
    module.run(cfg)


def _guarded(body: Callable[[], None], *, debug: bool) -> None:
    """Run a task; turn what a person can mend into one line and exit status 2 (with `debug=true`, a traceback)."""
    from omegaconf.errors import OmegaConfBaseException

    from metalora.core.errors import INTERRUPTED, TERMINATED, UserError

    try:
        body()
    except UserError as error:
        if debug:
            raise
        _fail(str(error))
    except OmegaConfBaseException as error:
        if debug:
            raise
        _fail(f"configuration: {str(error).splitlines()[0]}; key: {error.full_key}")
    except BrokenPipeError:  # whoever read the output is gone (`| head`): it ends there, every file whole
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(PIPE_CLOSED) from None
    except OSError as error:
        if debug or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        _fail(f"cannot write {error.filename or 'output'}: {error.strerror}; nothing already made was harmed; key: out")
    except KeyboardInterrupt:
        _stopped(INTERRUPTED)
    except SystemExit as stop:
        if stop.code != TERMINATED:
            raise
        _stopped(TERMINATED)


def _stopped(status: int) -> NoReturn:
    print("metalora: stopped; the same command continues", file=sys.stderr)
    raise SystemExit(status) from None


if __name__ == "__main__":
    main()
