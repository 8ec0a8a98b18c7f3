"""A made-up benchmark and made-up images of five methods: every picture's colour says which one it is."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from metalora.core.contracts import GeneratedImage
from metalora.core.manifest import write_manifest
from metalora.evaluation.checked import Checked
from metalora.people.benchmark import CLASS_NOUNS, load_benchmark
from metalora.reporting.user_study.design import Design, Question, draw_questions
from metalora.reporting.user_study.pool import Pool, find_folders, read_pool
from metalora.reporting.user_study.store import Store, write_study

METHODS = ("instantid_lightning", "photomaker_lightning", "pulid", "lora_aug", "meta_lora")
"""The paper's five, by the names their runners write."""
PROMPTS = {
    "multi": frozenset({"frontal-01", "frontal-02"}),
    "single": frozenset({"frontal-01", "frontal-02"}),
    "recontextualized": frozenset({"scene-01", "scene-02"}),
    "stylized": frozenset({"style-01", "style-02"}),
}
PAPER = {
    "multi": {"unsplash": 16},
    "single": {"unsplash": 16},
    "recontextualized": {"ffhq": 16},
    "stylized": {"ffhq": 16},
}
SMALL = {
    "multi": {"unsplash": 2},
    "single": {"unsplash": 2},
    "recontextualized": {"ffhq": 2},
    "stylized": {"ffhq": 2},
}
CHECKPOINTS = {"lora_aug": 625, "meta_lora": 375}


def colour(*words: object) -> tuple[int, int, int]:
    """A colour that names its words (nearly) uniquely."""
    red, green, blue = np.random.default_rng([ord(c) for c in repr(words)]).integers(0, 256, 3)
    return int(red), int(green), int(blue)


def paint(path: Path, of: tuple[int, int, int], *, size: tuple[int, int] = (40, 40), secret: str = "") -> None:
    """One colour all over, with metadata that must not reach anybody."""
    path.parent.mkdir(parents=True, exist_ok=True)
    note = PngInfo()
    note.add_text("parameters", f"made by {secret}")
    Image.new("RGB", size, of).save(path, pnginfo=note)


def make_benchmark(root: Path, *, people: int = 16, photos: int = 5) -> Path:
    """ROOT/unsplash/IDENTITY/NN.png and ROOT/ffhq/{man,woman}/NN.png, half men, half women."""
    nouns = {}
    for number in range(people):
        identity = f"p{number:02d}"
        nouns[identity] = "man" if number % 2 else "woman"
        for k in range(photos):
            paint(root / "unsplash" / identity / f"{k:02d}.png", colour(identity, k), secret=identity)
        noun = "man" if number % 2 else "woman"
        paint(root / "ffhq" / noun / f"{number:02d}.png", colour("ffhq", number), secret="ffhq")
    (root / "identities.json").write_text(json.dumps(nouns))
    return root


def make_images(
    root: Path, benchmark: Path, *, methods: tuple[str, ...] = METHODS, seeds: tuple[int, ...] = (0, 1, 2, 3)
) -> list[Path]:
    """One folder of images with a manifest per method; frontal prompts only with the first seed."""
    subjects = load_benchmark(benchmark).subjects
    folders = []
    for method in methods:
        records = []
        for subject in subjects:
            frontal = subject.part == "unsplash"
            for prompt_id in sorted(PROMPTS["multi"] if frontal else PROMPTS["recontextualized"] | PROMPTS["stylized"]):
                for seed in seeds[:1] if frontal else seeds:
                    records.append(record(method, subject.identity, subject.class_noun, prompt_id, seed))
                    of = colour(method, subject.identity, prompt_id, seed)
                    paint(root / method / records[-1].file, of, secret=method)
        write_manifest(root / method / "manifest.jsonl", records)
        folders.append(root / method)
    return folders


def record(method: str, identity: str, noun: str, prompt_id: str, seed: int) -> GeneratedImage:
    """A manifest's line."""
    trained = method in CHECKPOINTS
    return GeneratedImage(
        file=f"images/{identity}/{method}/{prompt_id}-{seed}.png",
        method=method,
        identity=identity,
        class_noun=noun,
        prompt_id=prompt_id,
        prompt=words(prompt_id, noun),
        seed=seed,
        rank=1 if trained else 0,
        iterations=CHECKPOINTS.get(method, 0),
        lora="x.safetensors" if trained else "",
        lora_sha256="",
        base_model="made_up",
        steps=1,
        guidance=1.0,
        size=(40, 40),
    )


def words(prompt_id: str, noun: str) -> str:
    """The made-up benchmark's prompts."""
    return f"a {noun} as {prompt_id} says"


def checked(benchmark: Path) -> Checked:
    """What lines of manifests are held against."""
    prompt_ids = sorted(frozenset().union(*PROMPTS.values()))
    texts = {(prompt_id, noun): words(prompt_id, noun) for prompt_id in prompt_ids for noun in CLASS_NOUNS}
    return Checked(load_benchmark(benchmark).subjects, texts, version=lambda: "made_up@0", file=Path("prompts.yaml"))


def pool_of(folder: Path, *, rank: int = 1, checkpoints: dict[str, int] = CHECKPOINTS) -> Pool:
    """The images in `folder`/images of the people in `folder`/benchmark."""
    found = find_folders([folder / "images"])
    return read_pool(found, rank=rank, checkpoints=checkpoints, checked=checked(folder / "benchmark"))


def design(*, counts: dict[str, dict[str, int]] = PAPER, seed: int = 0, **changes: object) -> Design:
    """The paper's design over the made-up prompts."""
    values = {"models": METHODS, "pair": ("pulid", "meta_lora"), "counts": counts, "prompt_ids": PROMPTS, "seed": seed}
    return Design(**(values | changes))


def questions_of(folder: Path, *, of: Design | None = None) -> tuple[Question, ...]:
    """Questions drawn from the images in `folder`/images and the people in `folder`/benchmark."""
    return draw_questions(of or design(), pool=pool_of(folder), subjects=load_benchmark(folder / "benchmark").subjects)


def study(path: Path, folder: Path, *, counts: dict[str, dict[str, int]] = SMALL) -> Store:
    """A study file, with nobody invited."""
    settings = {"models": METHODS, "pair": ("pulid", "meta_lora"), "order": "mixed", "counts": counts, "digest": ""}
    facts = {m: {"rank": 0, "iterations": 0, "base_model": "made_up", "steps": 1, "guidance": 1.0} for m in METHODS}
    questions = questions_of(folder, of=design(counts=counts))
    return write_study(path, questions=questions, settings=settings | {"facts": facts}, side=1024, quality=90)
