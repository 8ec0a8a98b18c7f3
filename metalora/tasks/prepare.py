"""`metalora prepare`: the people and the benchmark, rendered or checked and encoded, before anything is trained."""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from metalora.core.atomic import write_json
from metalora.core.contracts import TextEmbedding, TrainingPerson
from metalora.core.errors import UserError
from metalora.people.augment import Mode
from metalora.people.benchmark import load_benchmark
from metalora.people.cache import LatentCache, prepare_people
from metalora.people.curation import READABLE, REFERENCE_AGAIN, check_curation
from metalora.people.folder import PersonFolder, describe, photos_digest, scan_people
from metalora.perception.eyes import eyes_visible
from metalora.perception.pose import head_pose
from metalora.running.artifact import MANIFEST, leased
from metalora.running.progress import Board, Progress
from metalora.running.protocol import JOBS, Asked
from metalora.running.protocol import write_jobs as write_job_lines
from metalora.running.setting import Setting, set_threads

CLASSES = ("man", "woman")
CURATION = "curation.json"
REFERENCE_MODES: tuple[Mode, ...] = ("whole", "crops")


def run(cfg: DictConfig) -> None:
    """The task behind the command line."""
    setting = Setting.of(cfg)
    set_threads(setting)
    wanted = setting.words("sets", known=("stage1", "benchmark"))
    with Board() as board:
        progress = board.reporter("prepare")
        if setting["path"]:
            check_benchmark(setting.at_benchmark(Path(str(setting["path"]))), board=board)
            return
        if "stage1" in wanted:
            for class_noun in CLASSES:
                root = ensure_stage1(setting, class_noun=class_noun, progress=progress)
                scan = scan_people(root, key="people.root")
                photos = sum(len(person.photos) for person in scan.people)
                board.say(f"stage 1, {class_noun}: {len(scan.people)} people, {photos} photos in {root}")
                if scan.skipped:
                    board.say(f"skipped: {describe(scan.skipped)}")
                people, _ = encode_stage1(setting, class_noun=class_noun, progress=progress)
                board.say(f"encoded: {sum(len(person.images) for person in people)} pictures")
        if "benchmark" in wanted:
            root = ensure_benchmark(setting, progress=progress)
            subjects = load_benchmark(root).subjects
            photos = sum(1 + len(subject.test_photos) for subject in subjects)
            board.say(f"{setting['benchmark.name']}: {len(subjects)} people, {photos} photos in {root}")
            board.say(f"jobs: {write_jobs(setting)}")
            folders = [PersonFolder(s.identity, s.class_noun, (s.reference,)) for s in subjects]
            for mode in REFERENCE_MODES:
                people = encode_references(setting, folders, mode=mode, progress=progress)
                board.say(f"encoded: {sum(len(p.images) for p in people)} pictures of the references, {mode}")


def check_benchmark(setting: Setting, *, board: Board) -> Path:
    """Hold a benchmark's photos against the rules of section 4.1; tell and write down what violates them, and write
    the jobs it asks for. Returns curation.json."""
    root, problems = Path(setting["benchmark.root"]), list[UserError]()
    benchmark = load_benchmark(root, key="path", problems=problems)
    report = board.reporter("check")
    violations, seen = check_curation(
        benchmark,
        root,
        detector=setting.detector,
        yaw_of=lambda points: head_pose(points).yaw,
        eyes_of=eyes_visible,
        progress=lambda done, total: report("photos", done, total),
    )
    broken = [{"rule": "usable", "path": str(root), "what": error.told} for error in problems]
    broken += [{"rule": v.rule, "path": str(v.path), "what": v.what} for v in violations]
    for violation in broken:
        board.say(f"{violation['rule']}: {violation['path']}: {violation['what']}")
    photos = sum(1 + len(subject.test_photos) for subject in benchmark.subjects)
    board.say(f"{len(benchmark.subjects)} people, {photos} photos, {len(broken)} violations")
    board.say("not judged: hats, hands and hair before a face, likeness of attire and place, age and skin tone")
    name, digest = setting["benchmark.name"], photos_digest(seen)
    found = setting.folder("prepare", f"{name}-check", digest[:10]) / CURATION
    write_json(
        found,
        {
            "benchmark": name,
            "violations": broken,
            "references": {subject.identity: subject.reference.name for subject in benchmark.subjects},
            "photos": {
                f"{path.parent.name}/{path.name}": {
                    "faces": look.faces,
                    "yaw_estimate": None if look.yaw is None else round(look.yaw, 1),
                    "eyes_visible": None if look.eyes is None else list(look.eyes),
                }
                for path, look in seen.items()
            },
        },
    )
    board.say(f"checked: {found}")
    unusable = [error.told for error in problems]
    unusable += [f"{v.path}: {v.what}" for v in violations if v.rule in (READABLE, REFERENCE_AGAIN)]
    if unusable:
        raise UserError(
            "the benchmark cannot be used as it is",
            expected="people with readable photos, the reference not among the others",
            got=f"{len(unusable)} faults, first: {unusable[0]}",
            key="path",
        )
    board.say(f"jobs: {write_jobs(setting, folder=found.parent)}")
    return found


def write_jobs(setting: Setting, *, folder: Path | None = None) -> Path:
    """Write jobs.jsonl, every image that the benchmark asks of a method under the protocol; returns it."""
    asked = Asked(setting, CLASSES)
    if folder is None:
        folder = setting.folder("prepare", f"{setting['benchmark.name']}-jobs", asked.version.rpartition("@")[2][:10])
    write_job_lines(folder / JOBS, asked.jobs(""))
    return folder / JOBS


def ensure_stage1(setting: Setting, *, class_noun: str, progress: Progress) -> Path:
    """The folder of one class's Stage-1 people; the mini world's are rendered when they are not there yet."""
    root = Path(setting["people.root"]) / class_noun
    if setting["people.kind"] == "mini":
        from metalora.miniworld.phd import write_people

        with _rendering(root, progress) as owned:
            write_people(
                root,
                "stage1",
                class_noun,
                count=setting["people.count"],
                photos=setting["people.photos"],
                progress=owned,
            )
    return root


@contextlib.contextmanager
def _rendering(root: Path, progress: Progress) -> Iterator[Progress]:
    """One process at a time renders the people in a folder; the others wait and find them there."""
    if (root / MANIFEST).is_file():  # rendered; perhaps where nobody may write
        yield progress
        return
    with leased(root.with_name(f".{root.name}.lease"), progress, what=root.name) as owned:
        assert owned is not None
        yield owned


def stage1_people(setting: Setting, class_noun: str) -> tuple[PersonFolder, ...]:
    """The people of one class that Stage 1 uses: the first `people.count`, of each the first `people.photos`."""
    found = scan_people(Path(setting["people.root"]) / class_noun, key="people.root").people
    return tuple(
        PersonFolder(person.identity, person.class_noun, person.photos[: setting["people.photos"]])
        for person in found[: setting["people.count"]]
    )


def encode_stage1(
    setting: Setting, *, class_noun: str, progress: Progress
) -> tuple[tuple[TrainingPerson, ...], dict[str, TextEmbedding]]:
    """Stage 1's people with latents, and their captions' embeddings, from the cache or into it."""
    cache = LatentCache(setting.cache_root, setting.backbone)
    people = prepare_people(
        stage1_people(setting, class_noun),
        mode="native",
        cache=cache,
        shapes=setting.shapes,
        detector=None,
        class_noun=class_noun,
        progress=lambda done, total: progress("encode", done, total),
    )
    return people, cache.texts({person.caption for person in people})


def encode_references(
    setting: Setting, folders: Sequence[PersonFolder], *, mode: Mode, progress: Progress
) -> tuple[TrainingPerson, ...]:
    """The benchmark's reference photos as Stage 2 trains on them: whole (lora) or as crops (lora_aug, meta_lora)."""
    cache = LatentCache(setting.cache_root, setting.backbone)
    people = prepare_people(
        folders,
        mode=mode,
        cache=cache,
        shapes=setting.shapes,
        detector=setting.detector,
        face="largest",
        key="benchmark.root",
        progress=lambda done, total: progress(f"encode {mode}", done, total),
    )
    cache.texts({person.caption for person in people})
    return people


def ensure_benchmark(setting: Setting, *, progress: Progress) -> Path:
    """The benchmark's folder; the mini world's are rendered when they are not there yet."""
    from metalora.miniworld.phd import SPLIT_BENCHMARKS, write_mini_phd, write_split

    root, name = Path(setting["benchmark.root"]), setting["benchmark.name"]
    writers = {"mini_phd": write_mini_phd} | {one: partial(write_split, name=one) for one in SPLIT_BENCHMARKS}
    if name in writers:
        with _rendering(root, progress) as owned:
            writers[name](root, progress=owned)
    return root
