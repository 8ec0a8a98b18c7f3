"""The caller's side of the protocol: start a runner in its environment, follow it, tell a skip from a failure."""

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import metalora
from metalora.core.atomic import write_json
from metalora.core.errors import UserError
from metalora.evaluation.baselines.process import INCOMPLETE, SKIPPED

RUNNERS = ("pulid", "instantid", "photomaker")
LOG, ERRORS = "runner.log", "runner-errors.log"


@dataclass(frozen=True)
class Outcome:
    """What came of a baseline: a folder of images, or the reason why there is none."""

    images: Path
    skipped: str | None
    left_out: tuple[str, ...] = ()
    """FILE: WHY of every image that the method cannot draw."""


def launch(
    runner: str,
    *,
    method: str,
    python: Path | None,
    jobs: Path,
    out: Path,
    settings: Mapping[str, Any],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Draw jobs with a published method in its own process; what it says goes to OUT/runner.log
    and OUT/runner-errors.log.

    Args:
        runner: one of `RUNNERS`.
        python: the interpreter of the method's environment.

    Raises:
        UserError: an unknown runner, or a runner that ended badly.
    """
    if runner not in RUNNERS:
        raise UserError("unknown runner", expected=", ".join(RUNNERS), got=runner, key="baseline.runner")
    if python is None or not Path(python).is_file():
        what = f"there is no {python}" if python else "no path was given"
        return Outcome(out, f"the interpreter of its environment, baseline.python: {what}")
    out.mkdir(parents=True, exist_ok=True)
    request = out / "request.json"
    write_json(request, {"method": method, "jobs": str(jobs), "out": str(out.resolve()), "settings": dict(settings)})
    with (
        tempfile.TemporaryDirectory() as alone,
        (out / LOG).open("a", encoding="utf-8") as log,
        (out / ERRORS).open("a", encoding="utf-8") as errors,
    ):
        # Only this package is to be seen from the other environment, not what lies beside it.
        (Path(alone) / "metalora").symlink_to(Path(metalora.__file__).resolve().parent, target_is_directory=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
        # Published adapters are pickles; torch is to take nothing but tensors from them.
        environment |= {"PYTHONPATH": alone, "PYTHONUNBUFFERED": "1", "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}
        command = [str(python), "-m", f"metalora.evaluation.baselines.{runner}", str(request.resolve())]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        assert process.stdout is not None
        last = ""
        left_out: list[str] = []
        try:
            for line in process.stdout:
                log.write(line)
                last = line.strip() or last
                if line.startswith("left out: "):
                    left_out.append(line.strip().removeprefix("left out: "))
                words = line.split()
                if len(words) == 3 and words[0] == "progress" and words[1].isdigit() and words[2].isdigit():
                    progress(int(words[1]), int(words[2]))
            status = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if status == SKIPPED:
        return Outcome(out, last.removeprefix("skipped: "))
    if status and not (status == INCOMPLETE and left_out):
        raise UserError(
            f"the runner {runner} ended with status {status}",
            expected=f"status 0; {out / ERRORS} says more",
            got=_last_line(out / ERRORS),
            key="baseline",
        )
    return Outcome(out, None, tuple(left_out))


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return (lines or ["nothing"])[-1][:300]


def read_jobs(path: Path) -> list[dict[str, Any]]:
    """The lines of a jobs file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
