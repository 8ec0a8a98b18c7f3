"""A Weights & Biases run that tells numbers and hashes, and that no network can stop or hold up for long."""

import contextlib
import netrc
import os
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from metalora.core.errors import UserError
from metalora.core.metric_names import ITERATION
from metalora.tracking.tracker import Say, Thing

MODES = ("online", "offline", "disabled")
PROBE_SECONDS, INIT_SECONDS = 3.0, 15.0
"""Longest waits at a run's start: for any answer of the server, then for the run to be opened there. Where that fails,
wandb's own process takes two more seconds to end."""
_QUIET = {
    "WANDB_SILENT": "true",
    "WANDB_ERROR_REPORTING": "false",  # its crash reports would go to somebody else again
}


def settled_mode(mode: str, *, say: Say) -> str:
    """`online` where there is a key and a server that answers, else `offline`, which is said once.

    Raises:
        UserError: no such mode.
    """
    if mode not in MODES:
        raise UserError("unknown mode of wandb", expected=", ".join(MODES), got=str(mode), key="logger.mode")
    if mode != "online":
        return mode
    why = _why_offline()
    if why and why not in _TOLD:
        _TOLD.add(why)
        say(f"logger=wandb: {why}; runs are kept offline, `wandb sync` sends them later")
    return "offline" if why else "online"


_TOLD: set[str] = set()


def _why_offline() -> str | None:
    _prepare()
    import wandb

    try:
        settings = wandb.setup().settings
    except Exception as error:
        return f"its settings cannot be read ({type(error).__name__})"
    finally:
        _keep_to_oneself()
    if not (settings.api_key or os.environ.get("WANDB_API_KEY") or settings.identity_token_file or _in_netrc(settings)):
        return "there is no key (`wandb login`, or WANDB_API_KEY)"
    return _unreachable(settings.base_url)


def _prepare() -> None:
    os.environ.update({name: value for name, value in _QUIET.items() if name not in os.environ})
    _keep_to_oneself()


def _keep_to_oneself() -> None:
    """wandb's own process is found by this variable, which workers inherit: a killed worker's run would stay open in
    it, and whoever takes its work up again would be refused under the same id."""
    os.environ.pop("WANDB_SERVICE", None)


def _in_netrc(settings: Any) -> bool:
    """Whether `wandb login` has left a key."""
    home = Path.home()
    for path in (os.environ.get("NETRC"), home / ".netrc", home / "_netrc"):
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            if path and netrc.netrc(str(path)).authenticators(urlsplit(settings.base_url).hostname or ""):
                return True
    return False


@cache
def _unreachable(url: str) -> str | None:
    """Why a server cannot be used now; asked once per process. The asking thread is left behind when it takes longer:
    a time-out of a connection does not bound the look-up of a name."""
    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=lambda: answers.put(_asked(url)), daemon=True).start()
    try:
        return answers.get(timeout=PROBE_SECONDS)
    except queue.Empty:
        return f"the server cannot be reached (no answer within {PROBE_SECONDS:g} s)"


def _asked(url: str) -> str | None:
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=PROBE_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        return f"the server answers {error.code}" if error.code >= 500 else None
    except Exception as error:
        return f"the server cannot be reached ({getattr(error, 'reason', None) or type(error).__name__})"


class WandbRun:
    """One wandb run.

    Args:
        project, entity, group, job_type, name, config: as of `wandb.init`; nothing in them names a person or a file.
        run_id: a run continued under the same id continues on the dashboard.
        mode: online, offline or disabled.
        images: whether pictures may leave this machine.
        finish_seconds: longest wait at the end.
    """

    def __init__(
        self,
        *,
        project: str,
        entity: str | None,
        group: str | None,
        job_type: str,
        name: str,
        run_id: str,
        config: Mapping[str, Any],
        folder: Path,
        mode: str,
        images: bool,
        finish_seconds: float,
        say: Say,
    ) -> None:
        _prepare()
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        # The command line, the console, the repository and the list of installed packages would tell file names, hence
        # people's; a host, its owner's.
        settings = wandb.Settings(
            silent=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_disable_stats=True,
            x_save_requirements=False,
            host="-",
            console="off",
            disable_git=True,
            disable_code=True,
            program="metalora",
            init_timeout=INIT_SECONDS,
            finish_timeout=finish_seconds,
        )
        options: dict[str, Any] = {
            "project": project,
            "entity": entity,
            "group": group,
            "job_type": job_type,
            "name": name,
            "id": run_id,
            "resume": "allow",
            "dir": str(folder),
            "config": dict(config),
            "settings": settings,
            "reinit": "create_new",
        }
        try:
            self._run = wandb.init(mode=mode, **options)  # pyright: ignore[reportArgumentType]
        except Exception as error:  # the server went away between the question and the run, or took too long
            if mode == "online":
                say(f"logger=wandb: {type(error).__name__}; this run is kept offline, `wandb sync` sends it later")
                mode = "offline"
            with contextlib.suppress(Exception, SystemExit):
                wandb.teardown()  # in its process the run is half open, and would be refused as a second one
            self._run = wandb.init(mode=mode, **options)  # pyright: ignore[reportArgumentType]
        finally:
            _keep_to_oneself()
        self._images = images
        self._run.define_metric(ITERATION)
        self._run.define_metric("*", step_metric=ITERATION)
        if mode == "online" and self._run.url:
            say(f"run: {self._run.url}")

    def scalars(self, values: Mapping[str, float], *, step: int) -> None:
        """Handed to wandb's own process, which sends it when it can: nobody waits here."""
        self._run.log({ITERATION: step, **values})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table with its rows in the run's files."""
        import wandb

        self._run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def picture(self, name: str, path: Path, *, step: int) -> None:
        """Sent only where that was asked for: wandb copies a picture into the folder that `wandb sync` sends."""
        import wandb

        if self._images:
            self._run.log({ITERATION: step, name: wandb.Image(str(path))})

    def used(self, thing: Thing) -> None:
        """An edge of the lineage. (`use_artifact` refuses offline and waits for the server online.)"""
        self._run._log_artifact(_artifact(thing), use_after_commit=True)

    def made(self, thing: Thing, *, parents: Sequence[Thing]) -> None:
        """An artifact without content: its kind, its hash and those of what it was made from."""
        facts = {f"parent/{parent.kind}": parent.digest for parent in parents}
        self._run.log_artifact(_artifact(thing, **facts))

    def finish(self, *, status: int) -> None:
        """Send what is left, for a bounded time."""
        self._run.finish(exit_code=status)


def _artifact(thing: Thing, **facts: str) -> Any:
    import wandb

    made = wandb.Artifact(f"{thing.kind}-{thing.digest[:16]}", type=thing.kind, metadata=dict(thing.facts) | facts)
    made.add_reference(f"metalora://{thing.kind}/{thing.digest}", name="sha256", checksum=False)
    return made
