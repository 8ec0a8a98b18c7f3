"""The caller's side of the protocol: start a runner in its environment, follow it, tell a skip from a failure."""

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import metalora
from metalora.core.atomic import write_json
from metalora.core.errors import UserError
from metalora.core.manifest import FILE_NAME, read_manifest
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
    made_with: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Draw jobs with a published method in its own process; what it says goes to OUT/runner.log
    and OUT/runner-errors.log.

    Args:
        runner: one of `RUNNERS`.
        python: the interpreter of the method's environment.
        made_with: a digest of all that images depend on beside their job; one of another digest is drawn again.

    Raises:
        UserError: an unknown runner, or one that ended badly or left images out without a word.
    """
    if runner not in RUNNERS:
        raise UserError("unknown runner", expected=", ".join(RUNNERS), got=runner, key="baseline.runner")
    if python is None or not Path(python).is_file():
        what = f"there is no {python}" if python else "no path was given"
        return Outcome(out, f"the interpreter of its environment, baseline.python: {what}")
    out.mkdir(parents=True, exist_ok=True)
    request = out / "request.json"
    asked = {"method": method, "jobs": str(jobs), "out": str(out.resolve()), "made_with": made_with}
    write_json(request, {**asked, "settings": dict(settings)})
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
    _require_drawn(jobs, out, left_out)
    return Outcome(out, None, tuple(left_out))


def _require_drawn(jobs: Path, out: Path, left_out: Sequence[str]) -> None:
    """Raise UserError when a runner that ended well, or whatever the interpreter is, did not draw what it was asked."""
    files = {json.loads(line)["file"] for line in jobs.read_text(encoding="utf-8").splitlines() if line}
    drawn = {image.file for image in read_manifest(out)} if (out / FILE_NAME).is_file() else set[str]()
    if missing := sorted(files - drawn - {line.partition(": ")[0] for line in left_out}):
        raise UserError(
            f"the runner says it is done, but {len(missing)} of {len(files)} images are not there",
            expected=f"a line for each in {out / FILE_NAME}; {out / ERRORS} may say more",
            got=f"none for {missing[0]}",
            key="baseline.python",
        )


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return (lines or ["nothing"])[-1][:300]
