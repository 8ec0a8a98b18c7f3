"""Artifact folders: `NAME/TASK/LABEL-HASH` with a manifest.json that is written last; without it, unfinished."""

import contextlib
import hashlib
import json
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from metalora.core.atomic import write_json
from metalora.core.errors import UserError
from metalora.core.lease import Lease, Owner, tell
from metalora.core.memory import peak_memory_mb, reset_peak_memory
from metalora.running.progress import Progress

MANIFEST, LEASE = "manifest.json", ".lease"
LIBRARIES = ("metalora", "torch", "lightning", "diffusers", "transformers", "peft", "numpy", "open_clip_torch", "numba")


def config_hash(config: Mapping[str, Any]) -> str:
    """Ten hex digits over everything that changes an artifact's content."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:10]


@dataclass
class Artifact:
    """One output folder and what made it.

    Args:
        folder: where it lies.
        config: the values its content depends on; logger, launcher and paths stay out.
        parents: names of the artifacts it was made from, with the hash of each.
    """

    folder: Path
    config: Mapping[str, Any]
    parents: Mapping[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @property
    def manifest(self) -> Path:
        """The file that says the folder is finished."""
        return self.folder / MANIFEST

    @property
    def hash(self) -> str:
        """Hash of config and parents."""
        return config_hash({"config": self.config, "parents": self.parents})

    def read(self) -> dict[str, Any]:
        """The manifest, or an empty dict when the folder is unfinished or was made from something else."""
        try:
            found = json.loads(self.manifest.read_text())
        except (OSError, ValueError):
            return {}
        return found if found.get("hash") == self.hash else {}

    @property
    def complete(self) -> bool:
        """Whether the folder holds exactly what this configuration makes."""
        return bool(self.read())

    @contextlib.contextmanager
    def making(
        self,
        progress: Progress,
        *,
        done: Callable[[], bool] | None = None,
        served: Callable[[], bool] | None = None,
        run: str = "",
    ) -> Iterator[Progress | None]:
        """Own the folder while it is made; whoever else wants it waits.

        Args:
            progress: told of waiting, too.
            done: whether everything wanted is there; by default, that the folder is complete.
            served: asked while another makes it, whether what we want is there already; by default `done`.
            run: names the run of several processes that this one is the first of.

        Yields:
            progress to report with, which also keeps watch over the ownership, or None: there is nothing left to do.
        """
        done = done or (lambda: self.complete)
        if done():
            yield None
            return
        with leased(self.folder / LEASE, progress, what=self.folder.name, served=served or done, run=run) as owned:
            yield None if owned is None or done() else owned

    def begin(self, *, anew: bool = False) -> None:
        """The work starts now: seconds and peak memory count from here.

        Args:
            anew: what another configuration made in this folder (`out`) is changed: it is unfinished from here on.
        """
        if anew and not self.complete:
            self.manifest.unlink(missing_ok=True)
        self.started = time.monotonic()
        reset_peak_memory()

    def finish(self, **facts: Any) -> None:
        """Write the manifest; `facts` go into it. A finished artifact that is extended adds its seconds up."""
        earlier = 0.0
        if self.manifest.is_file():
            earlier = float(json.loads(self.manifest.read_text()).get("seconds", 0.0))
        seconds = time.monotonic() - self.started
        write_json(
            self.manifest,
            {
                "hash": self.hash,
                "config": dict(self.config),
                "parents": dict(self.parents),
                "seconds": round(earlier + seconds, 2),
                "peak_memory_mb": peak_memory_mb(),
                "git": git_revision(),
                "versions": versions(),
                **facts,
            },
        )


@contextlib.contextmanager
def leased(
    folder: Path, progress: Progress, *, what: str, served: Callable[[], bool] = lambda: False, run: str = ""
) -> Iterator[Progress | None]:
    """Hold the lease in a folder; arguments and what is yielded are as of `Artifact.making`."""
    lease = Lease(folder, what=what, run=run)

    def wait(owner: Owner) -> None:
        progress(f"wait for {owner.host} (process {owner.pid}), {owner.what}", 0, 1)

    def watched(stage: str, number: int, total: int) -> None:
        lease.check()
        tell(f"{stage} {number}/{total}")
        progress(stage, number, total)

    if not lease.acquire(enough=served, waiting=wait):
        yield None
        return
    try:
        yield watched
    finally:
        lease.release()


def stored_hash(folder: Path) -> str:
    """The hash in a finished folder's manifest.

    Raises:
        UserError: the folder is unfinished, or was not made by this project.
    """
    try:
        return str(json.loads((folder / MANIFEST).read_text())["hash"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder} is not a finished output", expected=f"a folder with {MANIFEST}", got=str(error), key="images"
        ) from None


@cache
def versions() -> dict[str, str]:
    """Versions of Python and the libraries that results depend on."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES}


@cache
def git_revision() -> str:
    """The revision of the checkout the code runs from, `unknown` when it is none."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
