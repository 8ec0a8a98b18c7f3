"""The command line: `metalora TASK key=value ...`, one Hydra application. Floor 4: only what starts it imports it."""

import errno
import importlib
import importlib.util
import io
import os
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, TextIO

from metalora.configuration import PACKAGE, conf_dir, general_help, has_actions, task_help, task_names
from metalora.core.errors import how_to_install

if TYPE_CHECKING:
    from omegaconf import DictConfig

EXIT_BAD_INPUT = 2
PIPE_CLOSED = 141
FREE_TEXT = {"prompt", "image", "prior", "priors.man", "priors.woman", "lora", "images", "base_images", "scores", "out"}
FREE_TEXT |= {"ip_adapter.adapter", "ip_adapter.face"}
FREE_TEXT |= {"identity", "backbone.path", "people.root", "benchmark.root", "init_image", "mask", "samples", "push"}
FREE_TEXT |= {"study", "consent", "contact", "address"}
FREE_TEXT |= {"path", "baseline.python", "baseline.settings.code"}
"""Keys whose value is somebody's sentence or file name: commas and brackets in it are no syntax."""


COMPANIONS = ("protocol", "scorer")
LAUNCHERS = {
    "workers": ("hydra_joblib_launcher", "joblib"),
    "joblib": ("hydra_joblib_launcher", "joblib"),
    "slurm": ("hydra_submitit_launcher", "slurm"),
    "local": ("hydra_submitit_launcher", "slurm"),
    "submitit_slurm": ("hydra_submitit_launcher", "slurm"),
    "submitit_local": ("hydra_submitit_launcher", "slurm"),
    "ray_cluster": ("hydra_ray_launcher", "ray"),
    "ray": ("hydra_ray_launcher", "ray"),
}
"""`hydra/launcher=` choices that need a plugin: its module, and the extra that brings it."""


def main(argv: list[str] | None = None) -> None:
    """Entry point of the `metalora` command.

    A first bare word becomes `task=WORD` (Hydra itself rejects bare words), a second one `action=WORD` where the task
    has actions. Bad input of any kind, a wrong configuration key included, ends in one line on stderr and exit
    status 2.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and "=" not in words[0] and not words[0].startswith("-"):
        if words[0] not in task_names():
            fail(f"unknown task; expected one of {', '.join(task_names())}; got {words[0]}")
        if "--help" in words or "-h" in words:
            _tell(task_help(words[0]))
            return
        if len(words) > 1 and re.fullmatch(r"[a-z-]+", words[1]) and words[1][0] != "-" and has_actions(words[0]):
            words[1] = f"action={words[1]}"
        words[0] = f"task={words[0]}"
    if not words or words[0] in ("--help", "-h") or not any(word.startswith("task=") for word in words):
        _tell(general_help())
        raise SystemExit(0 if words[:1] in (["--help"], ["-h"]) else EXIT_BAD_INPUT)
    multirun = [word for word in words if word in ("-m", "--multirun")]  # Hydra's parser wants it before every override
    overrides = [word for word in words if word not in multirun]
    overrides = with_companions(overrides)
    _check_launcher(overrides)
    try:
        _run_hydra(multirun + (overrides if multirun else [quoted(word) for word in overrides]))
    except KeyboardInterrupt:  # before the task or after it
        _stopped(130)


def _tell(text: str) -> None:
    """Print to whoever may not read all of it (`| head`)."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _unheard()


def _unheard() -> NoReturn:
    """Whoever read the output is gone: it ends there, every file whole."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(PIPE_CLOSED) from None


def with_companions(words: list[str]) -> list[str]:
    """Add the protocol and the scorer of a benchmark that is named, unless they are named too: real photos must not be
    scored by the mini world's models. (Hydra cannot follow `${benchmark}`, which follows `${backbone}` itself.)
    """
    named = {key: value for key, _, value in (word.partition("=") for word in words)}
    chosen = named.get("benchmark", "")
    known = [group for group in COMPANIONS if (conf_dir() / group / f"{chosen}.yaml").is_file()]
    return words + [f"{group}={chosen}" for group in known if group not in named]


def _check_launcher(words: list[str]) -> None:
    """Say which extra brings a launcher that is not installed."""
    for word in words:
        key, _, name = word.partition("=")
        plugin, extra = LAUNCHERS.get(name, ("", ""))
        if key == "hydra/launcher" and plugin and importlib.util.find_spec("hydra_plugins." + plugin) is None:
            fail(
                f"the launcher {name} is not installed; expected {how_to_install(extra)}; got no {plugin};"
                " key: hydra/launcher"
            )


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


def fail(message: str) -> NoReturn:
    """End with one line and the exit status of bad input."""
    speak()
    print(f"metalora: {message}", file=sys.stderr)
    raise SystemExit(EXIT_BAD_INPUT)


def register_resolvers() -> None:
    """OmegaConf resolvers of the configuration: `package_path:` and `conf_path:`."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("package_path", lambda path: str(PACKAGE / path), replace=True)
    OmegaConf.register_new_resolver("conf_path", lambda path: str(conf_dir() / path), replace=True)


class _Stderr:
    """Hydra explains a bad configuration over many lines; people get one. Until it is known to be whole, it waits."""

    real: TextIO | None = None
    """None: nothing waits; so it is in the processes of a launcher, too."""


def speak() -> None:
    """The configuration is whole: what goes to stderr from here on is the task's."""
    if _Stderr.real is not None:
        sys.stderr, _Stderr.real = _Stderr.real, None


def _application(cfg: "DictConfig") -> None:
    """What Hydra runs; on its own, so that launchers can name it in other processes."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    speak()
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        _guarded(lambda: _task(cfg), debug=bool(cfg.debug))
        return
    os.chdir(hydra.runtime.cwd)  # where the sweep was typed; a worker of Ray starts elsewhere
    from metalora.running.launching import in_worker, is_joblib

    target = str(hydra.launcher["_target_"])
    if is_joblib(target):
        in_worker(lambda: _cell(cfg))
        return
    alone = (cfg.trainer.devices, cfg.trainer.nodes) == (1, 1)
    if alone or not target.endswith(".BasicLauncher"):
        _cell(cfg)
    else:  # a process whose ranks are lost cannot always be saved: this one has the other cells to run
        from metalora.running.workers import in_own_process

        _guarded(lambda: in_own_process(_cell_of, cfg, HydraConfig.instance().cfg), debug=bool(cfg.debug))


def _cell(cfg: "DictConfig") -> None:
    """One cell of a sweep."""
    from metalora.running.sweep import run_cell

    _guarded(lambda: run_cell(cfg, lambda: _task(cfg), reason_of=explained), debug=bool(cfg.debug))


def _cell_of(cfg: "DictConfig", hydra: "DictConfig") -> None:
    """The same in a process of its own, which knows nothing yet."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import setup_globals

    setup_globals()
    register_resolvers()
    HydraConfig.instance().set_config(hydra)
    _cell(cfg)


def _run_hydra(words: list[str]) -> None:
    import hydra

    register_resolvers()
    sys.argv = [sys.argv[0], *words]
    if "debug=true" in words:
        os.environ["HYDRA_FULL_ERROR"] = "1"
    complaint, stderr = io.StringIO(), sys.stderr
    sys.stderr, _Stderr.real = complaint, stderr
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(_application)()
    except SystemExit as stop:
        if stop.code == 1 and sys.stderr is complaint:
            speak()
            fail(one_line(complaint.getvalue()))
        raise
    finally:
        if sys.stderr is complaint:
            speak()
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


def _task(cfg: object) -> object:
    module = importlib.import_module(f"metalora.tasks.{cfg.task.replace('-', '_')}")  # type: ignore[attr-defined]
    return module.run(cfg)


def explained(error: Exception) -> str | None:
    """One line for what a person can mend, None for anything else."""
    from omegaconf.errors import OmegaConfBaseException

    from metalora.core.errors import UserError

    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OmegaConfBaseException):
        return f"configuration: {str(error).splitlines()[0]}; key: {error.full_key}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        where = error.filename or "output"
        return f"cannot write {where}: {error.strerror}; nothing already made was harmed; key: out"
    return None


def _guarded(body: Callable[[], object], *, debug: bool) -> None:
    """Run a task; turn what a person can mend into one line and exit status 2 (with `debug=true`, a traceback)."""
    from metalora.core.errors import INTERRUPTED, TERMINATED

    try:
        body()
    except BrokenPipeError:
        _unheard()
    except KeyboardInterrupt:
        _stopped(INTERRUPTED)
    except SystemExit as stop:
        if stop.code != TERMINATED:
            raise
        _stopped(TERMINATED)
    except Exception as error:
        told = None if debug else explained(error)
        if told is None:
            raise
        fail(told)


def _stopped(status: int) -> NoReturn:
    print("metalora: stopped; the same command continues", file=sys.stderr)
    raise SystemExit(status) from None


if __name__ == "__main__":
    main()
