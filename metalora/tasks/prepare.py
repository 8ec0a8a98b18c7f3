"""`metalora prepare`: the people and the benchmark, rendered or checked, before anything is trained."""

from pathlib import Path

from omegaconf import DictConfig

from metalora.core.errors import UserError
from metalora.people.benchmark import load_benchmark
from metalora.people.folder import describe, scan_people
from metalora.tasks.progress import Board, Progress
from metalora.tasks.setting import Setting, set_threads

CLASSES = ("man", "woman")


def run(cfg: DictConfig) -> None:
    """The task behind the command line."""
    setting = Setting.of(cfg)
    set_threads(setting)
    wanted = setting["sets"] if isinstance(setting["sets"], list) else [setting["sets"]]
    unknown = sorted(set(wanted) - {"stage1", "benchmark"})
    if unknown:
        raise UserError(
            "nothing of that name to prepare", expected="stage1, benchmark", got=", ".join(unknown), key="sets"
        )
    with Board() as board:
        progress = board.reporter("prepare")
        if "stage1" in wanted:
            for class_noun in CLASSES:
                root = ensure_stage1(setting, class_noun=class_noun, progress=progress)
                scan = scan_people(root, key="people.root")
                photos = sum(len(person.photos) for person in scan.people)
                board.say(f"stage 1, {class_noun}: {len(scan.people)} people, {photos} photos in {root}")
                if scan.skipped:
                    board.say(f"skipped: {describe(scan.skipped)}")
        if "benchmark" in wanted:
            root = ensure_benchmark(setting, progress=progress)
            subjects = load_benchmark(root).subjects
            photos = sum(1 + len(subject.test_photos) for subject in subjects)
            board.say(f"{setting['benchmark.name']}: {len(subjects)} people, {photos} photos in {root}")


def ensure_stage1(setting: Setting, *, class_noun: str, progress: Progress) -> Path:
    """The folder of one class's Stage-1 people; the mini world's are rendered when they are not there yet."""
    root = Path(setting["people.root"]) / class_noun
    if setting["people.kind"] == "mini":
        from metalora.miniworld.phd import write_people

        write_people(
            root,
            "stage1",
            class_noun,
            count=setting["people.count"],
            photos=setting["people.photos"],
            progress=progress,
        )
    return root


def ensure_benchmark(setting: Setting, *, progress: Progress) -> Path:
    """The benchmark's folder; the mini world's are rendered when they are not there yet."""
    root, name = Path(setting["benchmark.root"]), setting["benchmark.name"]
    if name == "mini_phd":
        from metalora.miniworld.phd import write_mini_phd

        write_mini_phd(root, progress=progress)
    elif name == "mini_validation":
        from metalora.miniworld.phd import write_mini_validation

        write_mini_validation(root, progress=progress)
    return root
