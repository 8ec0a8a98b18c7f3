"""`metalora rival`: methods that are no LoRA, on the benchmark's people, prompts, noise and scores."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from metalora.adapters.artifacts import file_sha256
from metalora.core.contracts import TextEmbedding
from metalora.core.errors import UserError
from metalora.evaluation.embeddings import scorer_fingerprint
from metalora.evaluation.rivals.dreambooth import DreamBooth, DreamBoothRecipe, Sampling
from metalora.evaluation.rivals.ip_adapter import IpAdapter
from metalora.evaluation.rivals.rival import Rival, Sitter, file_of
from metalora.evaluation.rivals.textual_inversion import TextualInversion, TextualInversionRecipe
from metalora.inference.generate import GenerationJob, check_size
from metalora.inference.generate import generate as make_images
from metalora.people.benchmark import Subject
from metalora.people.cache import CAPTION
from metalora.people.folder import PersonFolder
from metalora.people.photos import load_photo, pixel_sha256
from metalora.running.artifact import Artifact
from metalora.running.progress import Board, Progress
from metalora.running.setting import Setting, set_threads
from metalora.tasks.evaluate import evaluate
from metalora.tasks.generate import embedded_prompts, generate
from metalora.tasks.prepare import CLASSES, encode_references, ensure_benchmark
from metalora.tasks.reproduce import base_jobs, prompts_of, score_base, subjects_of


def run(cfg: DictConfig) -> list[Path]:
    """The task behind the command line; returns the scores."""
    setting = Setting.of(cfg)
    methods, classes = setting.words("methods", known=tuple(RIVALS)), setting.words("classes", known=CLASSES)
    if setting["out"]:
        raise UserError(
            "rival makes many folders", expected="name=NAME for outputs/NAME", got=str(setting["out"]), key="out"
        )
    set_threads(setting)
    made = []
    with Board() as board:
        ensure_benchmark(setting, progress=board.reporter("prepare"))
        for class_noun in classes:
            base = score_base(setting.values, class_noun, progress=board.reporter(f"base {class_noun}"))
            board.say(f"scores: {base}")
            made.append(base)
            for method in methods:
                scores = score_rival(setting, method, class_noun, progress=board.reporter(f"{method} {class_noun}"))
                board.say(f"scores: {scores}")
                made.append(scores)
    return made


def score_rival(setting: Setting, method: str, class_noun: str, *, progress: Progress) -> Path:
    """One rival on one class: learn everybody, draw, score; returns scores.parquet."""
    subjects = subjects_of(setting, class_noun)
    texts = embedded_prompts(
        setting,
        {p.text for subject in subjects for p in prompts_of(setting, subject)}
        | {CAPTION.format(class_noun=class_noun)},
    )
    rival = RIVALS[method](setting, texts)
    learned = learn(setting, rival, subjects=subjects, class_noun=class_noun, progress=progress)
    images = draw(
        setting, rival, subjects=subjects, learned=learned, class_noun=class_noun, texts=texts, progress=progress
    )
    base = generate(setting, jobs=base_jobs(setting, class_noun), label=f"base-{class_noun}", progress=progress)
    return evaluate(
        setting,
        images=[images, base],
        subjects=subjects,
        label=f"{method}-{class_noun}",
        progress=progress,
    )


def learn(setting: Setting, rival: Rival, *, subjects: Sequence[Subject], class_noun: str, progress: Progress) -> Path:
    """Everybody's file; returns the folder they are in. Whoever has one there is not learned again."""
    config = {
        "task": "rival",
        "method": rival.name,
        "settings": dict(rival.settings()),
        "backbone": setting.backbone_key,
        "encoders": [setting.backbone.text_fingerprint, setting.backbone.encoder_fingerprint],
        "detector": scorer_fingerprint(setting["scorer.detector"]),
        "people": {s.identity: pixel_sha256(load_photo(s.reference)) for s in subjects},
        "resolutions": list(setting.numbers("resolutions", least=1)),
        "seed": setting["seed"],
    }
    folder = setting.folder("rival", f"{rival.name}-{class_noun}", Artifact(Path(), config).hash)
    artifact = Artifact(folder, config)

    def there() -> bool:
        return artifact.complete and all(file_of(folder, subject.identity).is_file() for subject in subjects)

    with artifact.making(progress, done=there) as owned:
        if owned is None:
            return folder
        artifact.begin()
        trained = {}
        if rival.crops is not None:
            people = [PersonFolder(s.identity, s.class_noun, (s.reference,)) for s in subjects]
            mode = "crops" if rival.crops else "whole"
            trained = {p.identity: p for p in encode_references(setting, people, mode=mode, progress=owned)}
        sitters = [Sitter(s.identity, s.class_noun, s.reference, trained.get(s.identity)) for s in subjects]
        rival.learn(sitters, out=folder, progress=lambda done, total: owned(f"learn {rival.name}", done, total))
        artifact.finish(iterations=rival.iterations, references={s.identity: s.reference.name for s in subjects})
    return folder


def draw(
    setting: Setting,
    rival: Rival,
    *,
    subjects: Sequence[Subject],
    learned: Path,
    class_noun: str,
    texts: Mapping[str, TextEmbedding],
    progress: Progress,
) -> Path:
    """Everybody's images, one person after the other; returns their folder (images/ and manifest.jsonl)."""
    files = {subject.identity: file_of(learned, subject.identity) for subject in subjects}
    digests = {identity: file_sha256(path) for identity, path in files.items()}
    jobs = {
        subject.identity: [
            GenerationJob(
                identity=subject.identity,
                class_noun=class_noun,
                method=rival.name,
                rank=0,
                iterations=rival.iterations,
                lora=None,
                prompt_id=prompt.id,
                prompt=prompt.text,
                seed=seed,
                digest=digests[subject.identity],
            )
            for prompt in prompts_of(setting, subject)
            for seed in setting.numbers("protocol.seeds", least=0)
        ]
        for subject in subjects
    }
    sampling = setting["sampling"]
    height, width = setting.numbers("sampling.size", least=1, count=2)
    check_size(setting.backbone, (height, width))
    config = {
        "task": "generate",
        "backbone": setting.backbone_key,
        "encoders": [setting.backbone.text_fingerprint, setting.backbone.encoder_fingerprint],
        "sampling": {key: value for key, value in sampling.items() if key != "batch_size"},
        "settings": dict(rival.settings()),
        "jobs": [
            (job.identity, job.method, job.prompt_id, job.prompt, job.seed) for own in jobs.values() for job in own
        ],
    }
    label = f"{rival.name}-{class_noun}"
    artifact = Artifact(setting.folder("generate", label, Artifact(Path(), config, digests).hash), config, digests)
    with artifact.making(progress) as owned:
        if owned is None:
            return artifact.folder
        artifact.begin()
        for done, (identity, own) in enumerate(jobs.items()):
            owned(f"generate {rival.name}", done, len(jobs))
            own_texts = rival.texts(files[identity], {job.prompt for job in own}, class_noun=class_noun)
            with rival.applied(files[identity]):
                make_images(
                    setting.backbone,
                    own,
                    steps=sampling["steps"],
                    guidance=sampling["guidance"],
                    size=(height, width),
                    batch_size=sampling["batch_size"],
                    texts=own_texts or texts,
                    out=artifact.folder,
                )
        artifact.finish(images=sum(map(len, jobs.values())))
    return artifact.folder


def _ip_adapter(setting: Setting, texts: Mapping[str, TextEmbedding]) -> Rival:
    own = setting["ip_adapter"]
    return IpAdapter(
        setting.backbone,
        adapter=Path(own["adapter"]),
        face=Path(own["face"]),
        scale=own["scale"],
        detector=lambda: setting.detector,
    )


def _dreambooth(setting: Setting, texts: Mapping[str, TextEmbedding]) -> Rival:
    height, width = setting.numbers("sampling.size", least=1, count=2)
    sampling = Sampling(setting["sampling.steps"], setting["sampling.guidance"], (height, width))
    recipe = DreamBoothRecipe(**_recipe(setting, "dreambooth", whole=("iterations", "prior_images")))
    return DreamBooth(setting.backbone, recipe=recipe, texts=texts, sampling=sampling, seed=setting["seed"])


def _textual_inversion(setting: Setting, texts: Mapping[str, TextEmbedding]) -> Rival:
    recipe = TextualInversionRecipe(**_recipe(setting, "textual_inversion", whole=("iterations", "cohort_size")))
    backbone: Any = setting.backbone
    return TextualInversion(backbone, recipe=recipe, texts=texts, seed=setting["seed"])


RIVALS: dict[str, Callable[[Setting, Mapping[str, TextEmbedding]], Rival]] = {
    "ip_adapter": _ip_adapter,
    "dreambooth": _dreambooth,
    "textual_inversion": _textual_inversion,
}


def _recipe(setting: Setting, section: str, *, whole: Sequence[str]) -> dict[str, Any]:
    """A section's values, checked.

    Raises:
        UserError: a rate, weight or count that is none.
    """
    values = dict(setting[section])
    for name, value in values.items():
        key, number = f"{section}.{name}", isinstance(value, int | float) and not isinstance(value, bool)
        if isinstance(value, bool) != (name == "crops"):
            raise UserError("not what the key takes", expected="true or false", got=str(value), key=key)
        if name in whole:
            setting.numbers(key, least=0 if name == "prior_images" else 1, count=1)
        elif name != "crops" and not (number and math.isfinite(value) and value > 0):
            raise UserError("not the number needed", expected="a number above 0", got=str(value), key=key)
    return values
