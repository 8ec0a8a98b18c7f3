"""`metalora evaluate`: scores of folders of generated images, one row per image, and a table of methods."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from metalora.core.atomic import write_json
from metalora.core.errors import UserError
from metalora.core.manifest import FILE_NAME, inside, read_manifest
from metalora.evaluation.breakdown import as_json
from metalora.evaluation.checked import Checked, coverage, every_line
from metalora.evaluation.embeddings import Scorers, scorer_fingerprint
from metalora.evaluation.score import score_images
from metalora.evaluation.score_table import BASE, PHOTO_METHODS, write_scores
from metalora.people.benchmark import Subject, load_benchmark, load_prompts
from metalora.reporting.standings import tables_of
from metalora.reporting.tables import as_text
from metalora.running.artifact import MANIFEST, Artifact, stored_hash
from metalora.running.progress import Board, Progress
from metalora.running.protocol import Asked
from metalora.running.setting import Setting, set_threads
from metalora.running.study import rates_hash, study_hash
from metalora.tasks.prepare import CLASSES, ensure_benchmark
from metalora.tracking.loggers import tracked, with_logger
from metalora.tracking.scores import tell_cells, tell_lineage

if TYPE_CHECKING:
    import pandas as pd

SUMMARY = "scores.json"


def run(cfg: DictConfig) -> list[Path]:
    """The task behind the command line; returns the scores."""
    setting = Setting.of(cfg)
    set_threads(setting)
    folders = [Path(folder) for folder in setting.words("images")]
    if not folders:
        raise UserError("nothing to score", expected="one folder of images or more", got="none", key="images")
    if setting["base_images"]:
        folders.append(Path(setting["base_images"]))
    with Board() as board:
        progress = board.reporter("evaluate")
        ensure_benchmark(setting, progress=progress)
        check_cells(setting, folders, board=board)
        setting = with_logger(setting, say=board.say)
        scores = evaluate(setting, images=folders, label=folders[0].name, progress=progress)
        for line in summarize(scores):
            board.say(line)
        board.say(f"scores: {scores}")
    return [scores]


def check_cells(setting: Setting, folders: Sequence[Path], *, board: Board) -> None:
    """Hold the folders against the benchmark, the protocol and the classes; tell every cell that is not there once.

    Raises:
        UserError: a line does not fit the benchmark, or there is no folder or manifest; cells are missing or doubled
            and `allow_missing` is not set.
    """
    for folder in folders:
        _hash(folder)  # says what is wrong with a folder
    asked = Asked(setting, setting.words("classes", known=CLASSES))
    records = every_line(folders, bases_may_differ=bool(setting["allow_missing"]))
    checked = _checked(setting)
    records = [checked.fill(record) for record in records]  # a wrong line is told as such, not as a missing cell
    found = coverage(records, wanted=asked.cells(), base=asked.base_cells())
    for line in found.lines():
        board.say(line)
    if not found.whole and not setting["allow_missing"]:
        raise found.error()
    if found.beyond:
        board.say(f"{found.beyond} images beyond the protocol {setting['protocol.name']} are scored too")


def summarize(scores: Path) -> list[str]:
    """Write scores.json beside a score table; returns what to tell: tables, and what could not be measured."""
    from metalora.evaluation.score_table import read_scores

    frame = read_scores([scores])
    summary = as_json(frame)
    write_json(scores.parent / SUMMARY, summary)
    return [*(line for table in tables_of(summary) for line in as_text(table).splitlines()), *_gaps(frame)]


def _gaps(frame: "pd.DataFrame") -> list[str]:
    """What is left out of the means, and why."""
    lines = []
    photos = frame[frame["method"].isin(PHOTO_METHODS[:2]) & (frame["face_found"] == 0)]
    for row in photos.itertuples():
        left = "FaceSim is not measured" if row.method == PHOTO_METHODS[0] else "R-FaceSim leaves it out"
        lines.append(f"no face was found in the real photo {row.file} of {row.identity}: {left} for it")
    generated = frame[~frame["method"].isin(PHOTO_METHODS)]
    alone = generated[generated["face_found"].notna() & (generated["test_photos"] == 0)]["identity"].unique()
    lines += [f"{identity} has no other photo with a face: no R-FaceSim" for identity in sorted(alone)]
    no_twin = generated[generated["clip_t"].notna() & generated["clip_i"].isna()]
    if len(no_twin):
        lines.append(
            f"CLIP-I is not measured for {len(no_twin)} images: there is none of the untouched base with the same base"
            " model, prompt, seed, steps, guidance and size (base_images)"
        )
    return lines


def scorers_of(setting: Setting) -> Scorers:
    """The configured scorers; each model is built only when something is not in the cache."""
    config: dict[str, Any] = dict(setting["scorer"])
    second = config.pop("second_embedder", None)
    return Scorers(
        detector=lambda: setting.detector,
        embedder=lambda: setting.embedder,
        clip=lambda: setting.clip,
        fingerprint=scorer_fingerprint(config),
        second=(lambda: setting.second_embedder) if second else None,
        second_fingerprint=scorer_fingerprint({"detector": config["detector"], "embedder": second}) if second else "",
    )


def evaluate(
    setting: Setting,
    *,
    images: Sequence[Path],
    label: str,
    subjects: Sequence[Subject] | None = None,
    progress: Progress,
) -> Path:
    """Score folders of images (the base's among them for CLIP-I); returns scores.parquet.

    Args:
        subjects: whom images may show; the whole benchmark by default.
    """
    chosen = setting["benchmark"]
    config = {
        "task": "evaluate",
        "study": study_hash(setting),
        "benchmark": {key: chosen[key] for key in ("name", "face_part", "clip_part")},
        "scorer": scorer_fingerprint(setting["scorer"]),
    }
    alike = len({folder.name for folder in images}) < len(images)
    parents = {str(folder) if alike else folder.name: _hash(folder) for folder in images}
    artifact = Artifact(setting.folder("evaluate", label, Artifact(Path(), config, parents).hash), config, parents)
    scores = artifact.folder / "scores.parquet"
    with artifact.making(progress, done=lambda: artifact.complete and scores.is_file()) as owned:
        if owned is not None:
            _score(setting, artifact, images=images, subjects=subjects, scores=scores, progress=owned)
    return scores


def _score(
    setting: Setting,
    artifact: Artifact,
    *,
    images: Sequence[Path],
    subjects: Sequence[Subject] | None,
    scores: Path,
    progress: Progress,
) -> None:
    """The score table in a folder that this process owns."""
    chosen = setting["benchmark"]
    artifact.begin(anew=True)
    prompts = load_prompts(Path(chosen["prompts"]))
    people = tuple(subjects or load_benchmark(Path(chosen["root"])).subjects)
    checked = _checked(setting, people)
    frame = score_images(
        images,
        people,
        face_prompts=prompts.ids("frontal"),
        clip_prompts=prompts.ids("clip"),
        scorers=scorers_of(setting),
        cache=setting.cache_root / "scores",
        face_part=chosen["face_part"],
        clip_part=chosen["clip_part"],
        kinds=prompts.kinds(),
        fill=checked.fill,
        progress=progress,
    )
    write_scores(scores, frame)
    with tracked(
        setting, task="evaluate", digest=artifact.hash, folder=artifact.folder, facts=_subject(frame)
    ) as tracker:
        tell_cells(tracker, frame, folder=artifact.folder)
        tell_lineage(tracker, images, digest=artifact.hash)
    artifact.finish(rows=len(frame), learning_rate=setting["learning_rate"], rates=rates_hash(setting))


def _subject(frame: "pd.DataFrame") -> dict[str, str | int]:
    """Whose scores they are, where one method at one rank was scored, beside the untouched base."""
    trained = frame[~frame["method"].isin([*PHOTO_METHODS, BASE])]
    classes = sorted(frame["class_noun"].unique())
    facts: dict[str, str | int] = {"class_noun": classes[0] if len(classes) == 1 else "both"}
    generated = trained[["method", "rank"]].drop_duplicates()
    if len(generated) != 1:
        return facts | {"method": "several" if len(generated) else BASE, "rank": 0}
    return facts | {"method": str(generated["method"].iloc[0]), "rank": int(generated["rank"].iloc[0])}


def _checked(setting: Setting, subjects: Sequence[Subject] | None = None) -> Checked:
    """What lines are held against; the whole benchmark's people by default."""
    chosen = setting["benchmark"]
    return Checked(
        subjects or load_benchmark(Path(chosen["root"])).subjects,
        load_prompts(Path(chosen["prompts"])).texts(),
        version=lambda: Asked(setting, CLASSES).version,
        file=Path(chosen["prompts"]),
    )


def _hash(folder: Path) -> str:
    """What a folder of images holds: by its manifest.json, or by its content where the folder is another program's or
    named by `out`, which may hold images of several commands."""
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder}", expected=f"a folder of images with a {FILE_NAME}", key="images, base_images"
        )
    records = read_manifest(folder)
    where = folder.resolve()
    own = re.fullmatch(r".+-[0-9a-f]{10}", where.name)  # LABEL-HASH
    drawn = where.parent.name == "generate" and any(record.lora_sha256 for record in records)
    if own and ((folder / MANIFEST).is_file() or drawn):
        return stored_hash(folder)  # says so when this program has not finished it
    digest = hashlib.sha256()
    for path in [folder / FILE_NAME, *(inside(folder, record.file) for record in records)]:
        if path.is_file():  # scoring tells which image is gone
            digest.update(path.read_bytes())
    return digest.hexdigest()[:10]
