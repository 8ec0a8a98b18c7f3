"""A study: which cells may be compared, which artifacts they came from, and what its runs cost.

Cells of one study differ in method, rank and iterations alone; everything else is in `study_hash`, the models that
score included, so that tables of another base, prompt set or scorer never meet in one report.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metalora.adapters.artifacts import file_sha256
from metalora.evaluation.curves import on_own_base
from metalora.evaluation.embeddings import scorer_fingerprint
from metalora.evaluation.score_table import BASE_SETTING, KEY, bases_of, read_scores
from metalora.running.artifact import MANIFEST, config_hash
from metalora.running.protocol import Asked
from metalora.running.setting import Setting

STAGES = ("prepare", "meta-train", "personalize", "generate", "evaluate")
"""In the order of the data flow."""
RUNS = "runs.jsonl"
_SHARED = ("resolutions", "meta_rank", "batch_size", "gradient_clip", "seed", "protocol")


def study_hash(setting: Setting) -> str:
    """Over everything that must be equal for cells to be compared: all but method, rank and iterations."""
    return config_hash(_values(setting) | {"learning_rate": setting["learning_rate"]})


def rates_hash(setting: Setting) -> str:
    """The same without the learning rate: studies that may be compared to choose one."""
    return config_hash(_values(setting))


def _values(setting: Setting) -> dict[str, Any]:
    given = given_priors(setting)
    return (
        {key: setting[key] for key in _SHARED}
        | {"stage1": setting.stage1_recipe}
        | ({"priors": given} if given else {})
        | {
            "backbone": setting.backbone_key,
            "encoders": [setting.backbone.text_fingerprint, setting.backbone.encoder_fingerprint],
            "people": {key: setting[f"people.{key}"] for key in ("kind", "count", "photos")},
            "sampling": {key: value for key, value in setting["sampling"].items() if key != "batch_size"},
            "scorer": scorer_fingerprint(setting["scorer"]),
            "benchmark": Asked(setting, ()).version,
            "prompts": hashlib.sha256(Path(setting["benchmark.prompts"]).read_bytes()).hexdigest(),
        }
    )


def given_priors(setting: Setting) -> dict[str, str]:
    """Class noun to the sha256 of the prior that `reproduce` was given instead of training one."""
    given = setting.values.get("priors") or {}
    return {noun: file_sha256(Path(path)) for noun, path in given.items() if path}


@dataclass(frozen=True)
class Used:
    """The finished artifacts that a study's scores came from: manifests by stage, and the score tables."""

    manifests: Mapping[str, tuple[Mapping[str, Any], ...]]
    scores: tuple[Path, ...]

    def seconds(self) -> dict[str, float]:
        """Seconds of each stage, added over its jobs (which run side by side)."""
        return {stage: round(sum(m["seconds"] for m in found), 1) for stage, found in self.manifests.items() if found}

    def peak_memory_mb(self) -> dict[str, int]:
        """The largest peak of each stage's jobs; what a worker held over from an earlier job counts too."""
        return {stage: max(m["peak_memory_mb"] for m in found) for stage, found in self.manifests.items() if found}

    def worlds(self) -> set[str]:
        """Names of the base models that the scores tell of, other programs' too; of NAME@FINGERPRINT the name."""
        if not self.scores:
            return set()
        told = on_own_base(read_scores(self.scores))["base_model"].dropna()
        return {name for model in told.unique() if (name := str(model).split("@")[0])}


def used(folder: Path, study: str) -> Used:
    """Follow a study's evaluations in `folder` back to what they were made from; tables oldest first, without those
    whose every row a newer one has of other LoRAs (some were lost, and trained again to other bits)."""
    tables = sorted(
        (path for path in (folder / "evaluate").glob(f"*/{MANIFEST}") if _read(path)["config"].get("study") == study),
        key=lambda path: path.stat().st_mtime,
    )
    held = [_loras_of(path.with_name("scores.parquet")) for path in tables]
    tables = [path for n, path in enumerate(tables) if not any(_replaces(new, held[n]) for new in held[n + 1 :])]
    priors = _priors(folder)
    found: dict[str, dict[str, Mapping[str, Any]]] = {stage: {} for stage in STAGES}

    def follow(stage: str, name: str) -> None:
        manifest = folder / stage / name / MANIFEST
        if name in found[stage] or not manifest.is_file():
            return
        found[stage][name] = _read(manifest)
        for parent, digest in found[stage][name]["parents"].items():
            if stage == "evaluate":
                follow("generate", parent)
            elif stage == "generate":
                follow("personalize", parent.split("/")[0])
            elif digest in priors:
                follow("meta-train", priors[digest].name)

    for path in tables:
        follow("evaluate", path.parent.name)
    for path in (folder / "prepare").glob(f"*/{MANIFEST}"):
        found["prepare"][path.parent.name] = _read(path)
    return Used(
        {stage: tuple(manifests.values()) for stage, manifests in found.items()},
        tuple(path.parent / "scores.parquet" for path in tables),
    )


def _loras_of(table: Path) -> dict[tuple[Any, ...], str]:
    """The hash of every row's LoRA by the row's name."""
    import pandas as pd

    if not table.is_file():
        return {}
    rows = pd.read_parquet(table, columns=[*KEY, *BASE_SETTING, "lora_sha256"])
    names = zip(*(rows[name] for name in KEY), bases_of(rows), strict=True)
    return dict(zip(names, rows["lora_sha256"], strict=True))


def _replaces(newer: Mapping[tuple[Any, ...], str], older: Mapping[tuple[Any, ...], str]) -> bool:
    return older.keys() <= newer.keys() and any(newer[name] != lora for name, lora in older.items())


def is_whole(folder: Path, scores: Sequence[Path], *, given: Collection[str] = ()) -> bool:
    """Whether score tables and what they were made from (folders of images, LoRAs, priors) still lie in `folder`.

    Args:
        given: sha256 of priors that come from elsewhere.
    """
    priors = _priors(folder)
    for table in scores:
        if not (table.is_file() and (table.parent / MANIFEST).is_file()):
            return False
        for images in _read(table.parent / MANIFEST)["parents"]:
            made = folder / "generate" / images
            if not ((made / MANIFEST).is_file() and (made / "manifest.jsonl").is_file() and (made / "images").is_dir()):
                return False
            for lora in _read(made / MANIFEST)["parents"]:
                trained = folder / "personalize" / lora.split("/")[0] / MANIFEST
                if not ((folder / "personalize" / lora).is_file() and trained.is_file()):
                    return False
                for prior in set(_read(trained)["parents"].values()) - set(given):
                    if prior not in priors or not (priors[prior] / "prior.safetensors").is_file():
                        return False
    return True


def _priors(folder: Path) -> dict[str, Path]:
    """Folders of the finished priors by the hash that a trained LoRA's manifest names."""
    manifests = {path: _read(path) for path in (folder / "meta-train").glob(f"*/{MANIFEST}")}
    return {str(told["sha256"]): path.parent for path, told in manifests.items() if "sha256" in told}


def newest_study(folder: Path) -> str | None:
    """The study of the newest finished evaluation in `folder`."""
    found = sorted((folder / "evaluate").glob(f"*/{MANIFEST}"), key=lambda path: path.stat().st_mtime)
    return str(_read(found[-1])["config"].get("study", "")) if found else None


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


class Clock:
    """Wall seconds of a study over all its runs, stopped ones included; kept in `FOLDER/runs.jsonl`.

    Args:
        facts: how it is run, kept beside the seconds.
        started: when this run began, in `time.monotonic` seconds.
    """

    def __init__(self, folder: Path, study: str, facts: Mapping[str, str], *, started: float) -> None:
        self._path, self._study, self._facts = folder / RUNS, study, dict(facts)
        self._before = sum(run["seconds"] for run in runs(folder, study))
        self._started = started

    def seconds(self) -> float:
        """Of all runs up to now."""
        return round(self._before + time.monotonic() - self._started, 1)

    @contextlib.contextmanager
    def running(self) -> Iterator["Clock"]:
        """Write this run down when it ends, whichever way."""
        finished = False
        try:
            yield self
            finished = True
        finally:
            run = {"study": self._study, "finished": finished, "facts": self._facts}
            run["seconds"] = round(time.monotonic() - self._started, 1)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(run) + "\n")


def runs(folder: Path, study: str) -> list[dict[str, Any]]:
    """The runs of a study that have ended, oldest first."""
    path = folder / RUNS
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # a line that a full disk cut
            found.append(json.loads(line))
    return [run for run in found if run["study"] == study]
