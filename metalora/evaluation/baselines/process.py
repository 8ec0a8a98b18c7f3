"""The runner's side of the protocol, run by the interpreter of the method's own environment: standard library alone.

`PYTHON -m metalora.evaluation.baselines.RUNNER REQUEST.json`, where the request names the jobs (JSONL), the folder for
images/ and manifest.jsonl, the settings, and a digest of all that images are made with. A line `progress DONE TOTAL` on
standard output follows every image. Exit status 0: all images are there; `SKIPPED`: code or weights are missing, and
the last line `skipped: WHY` says which; `INCOMPLETE`: some cannot be drawn, each told on a line `left out: FILE: WHY`,
and all others are there. What is there already, with a line of the same job and digest, is not drawn again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SKIPPED = 75
"""Exit status: not a failure, it cannot be run here (EX_TEMPFAIL)."""
INCOMPLETE = 65
"""Exit status: the method finds no face in some photos; all other images are drawn (EX_DATAERR)."""
_IN_A_ROW = 3
"""Of so many images at the start, all of which fail in the same way, the fault is not an image's."""


class Missing(Exception):  # noqa: N818  (a reason, not a fault)
    """Code or weights that the method needs are not there."""


class NoFace(Exception):  # noqa: N818  (a property of a photo)
    """The method finds no face in the photo of a job."""


def needed(path: Any, what: str) -> Path:
    """A file or folder that has to be there.

    Raises:
        Missing: it was not given, or is not there.
    """
    if not path:
        raise Missing(f"{what}: no path was given")
    if not Path(path).exists():
        raise Missing(f"{what}: there is no {path}")
    return Path(path)


def digest(*paths: Path) -> str:
    """sha256 over weights: of the file when it is one, else over all files' own; hidden files do not count."""
    each = []
    for file in [file for path in paths for file in sorted(_files(path))]:
        found = hashlib.sha256()
        with file.open("rb") as content:
            for block in iter(lambda content=content: content.read(1 << 22), b""):
                found.update(block)
        each.append(found.hexdigest())
    return each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest()


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    for folder, folders, files in os.walk(path, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(folder) / name for name in files if not name.startswith("."))


def run(build: Callable[[dict[str, Any]], Callable[[dict[str, Any]], tuple[Any, dict[str, Any]]]]) -> int:
    """Read the request, build the method, draw every job that is not there yet.

    Args:
        build: settings to a function from a job to a PIL image and what belongs into its line beside the job; it raises
            NoFace for a job whose photo shows the method no face, ValueError for one it cannot draw for another reason.
    """
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    jobs = [json.loads(line) for line in Path(request["jobs"]).read_text(encoding="utf-8").splitlines() if line]
    out = Path(request["out"])
    manifest = out / "manifest.jsonl"
    asked = {job["file"]: job for job in jobs}
    there = {
        file: line
        for file, line in _lines(manifest, out).items()
        if _fits(line, asked.get(file, {}), made_with=request["made_with"])
    }
    todo = [job for job in jobs if job["file"] not in there]
    print("progress", len(jobs) - len(todo), len(jobs), flush=True)
    if not todo:
        return 0
    try:
        draw = build(request["settings"])
    except (ImportError, Missing) as error:
        print(f"skipped: {' '.join(str(error).split())}", flush=True)
        return SKIPPED
    failed: list[tuple[str, str]] = []
    faceless = drawn = 0
    with _replacing(manifest) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in there.values()), encoding="utf-8")
    with manifest.open("a", encoding="utf-8") as lines:
        for done, job in enumerate(todo, start=len(jobs) - len(todo) + 1):
            _reset_peak()
            started = time.perf_counter()
            try:
                image, facts = draw(job)
            except NoFace as error:
                faceless += 1
                print(f"left out: {job['file']}: {' '.join(str(error).split())}", flush=True)
                continue
            except ValueError as error:
                failed.append((job["file"], " ".join(str(error).split())))
                if not drawn and len(failed) == _IN_A_ROW and len({why for _, why in failed}) == 1:
                    print(f"stopped: the first {_IN_A_ROW} images all fail: {failed[0][1]}", file=sys.stderr)
                    return 1
                continue
            drawn += 1
            seconds = round(time.perf_counter() - started, 3)
            with _replacing(out / job["file"]) as temporary:
                image.save(temporary, "PNG")
            cost = {"seconds": seconds, "peak_memory_mb": _peak_mb(), "size": [image.height, image.width]}
            line = {**job, **facts, **cost, "made_with": request["made_with"]}
            line["method"] = job["method"] or request["method"]  # the untouched base keeps its name
            lines.write(json.dumps(line) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
            print("progress", done, len(jobs), flush=True)
    for file, why in failed:
        print(f"{file}: {why}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {len(jobs)} images cannot be drawn, first {': '.join(failed[0])}", file=sys.stderr)
        return 1
    return INCOMPLETE if faceless else 0


def _lines(manifest: Path, out: Path) -> dict[str, dict[str, Any]]:
    """The lines of an earlier run whose image is there; its last line may have been cut."""
    found = {}
    if manifest.is_file():
        for text in manifest.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if (out / line["file"]).is_file():
                found[line["file"]] = line
    return found


def _fits(line: dict[str, Any], job: dict[str, Any], *, made_with: str) -> bool:
    """Whether a line's image is what the job asks for; where the photos lie does not matter."""
    wanted = {**job, "made_with": made_with}
    return all(line.get(key) == value for key, value in wanted.items() if key not in ("method", "reference"))


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place once it is written; `core.atomic` is of a newer Python than some
    environments have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    yield temporary
    with temporary.open("rb") as written:
        os.fsync(written.fileno())
    temporary.replace(path)


def _reset_peak() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak_mb() -> int:
    """Of the GPU where there is one, else of the process since it began."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / (1 << 20))
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
