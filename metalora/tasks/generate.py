"""`metalora generate`: images from an exported LoRA file, or from the untouched base."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from metalora.adapters.artifacts import file_sha256, load_lora
from metalora.adapters.transform import ranks
from metalora.core.contracts import METHODS, TextEmbedding
from metalora.core.errors import UserError
from metalora.inference.generate import GenerationJob, check_size
from metalora.inference.generate import generate as make_images
from metalora.inference.start import Start, load_start
from metalora.people.benchmark import load_prompts
from metalora.people.cache import LatentCache
from metalora.running.artifact import MANIFEST, Artifact
from metalora.running.memory import measured, plan_generation
from metalora.running.progress import Board, Progress
from metalora.running.setting import Setting, set_threads


def run(cfg: DictConfig) -> list[Path]:
    """The task behind the command line; returns the images."""
    setting = Setting.of(cfg)
    set_threads(setting)
    lora = Path(setting["lora"]) if setting["lora"] else None
    prompts = setting.words("prompt")
    seeds = setting.numbers("seeds", least=0)
    if not prompts:
        raise UserError("nothing to generate", expected="at least one prompt", got="none", key="prompt")
    if not isinstance(setting["strength"], int | float):
        raise UserError("no strength", expected="a number", got=str(setting["strength"]), key="strength")
    loaded = load_lora(lora) if lora else None
    ours = loaded is not None and loaded.metadata.get("method") in METHODS
    metadata = loaded.metadata if loaded and ours else {}  # other programs mean other things by the same words
    # A prompt of the benchmark goes by its name there, so that `evaluate` can score the folder.
    names = load_prompts(Path(setting["benchmark.prompts"])).ids_by_text()
    jobs = [
        GenerationJob(
            identity=metadata.get("identity", lora.stem) if lora else "base",
            class_noun=str(metadata.get("class_noun", setting["class_noun"])),
            method=metadata.get("method", "lora") if lora else "base",
            rank=ranks(loaded)[-1] if loaded else 0,
            iterations=int(metadata.get("iterations", 0)),
            lora=lora,
            prompt_id=names.get(prompt, f"prompt-{number:02d}"),
            prompt=prompt,
            seed=seed,
        )
        for number, prompt in enumerate(prompts)
        for seed in seeds
    ]
    with Board() as board:
        label, progress = lora.stem if lora else "base", board.reporter("generate")
        folder = generate(setting, jobs=jobs, label=label, overwrite=False, progress=progress, say=board.say)
        board.say(f"images: {folder}")
    return [folder / MANIFEST, *sorted((folder / "images").rglob("*.png"))]


def artifact_of(setting: Setting, *, jobs: Sequence[GenerationJob], label: str) -> Artifact:
    """Where a set of images goes and what it depends on."""
    files = sorted({str(job.lora) for job in jobs if job.lora})
    start = start_of(setting)
    config: dict[str, Any] = {
        "task": "generate",
        "backbone": setting.backbone_key,
        "encoders": [setting.backbone.text_fingerprint, setting.backbone.encoder_fingerprint],
        "sampling": {key: value for key, value in setting["sampling"].items() if key != "batch_size"},
        "jobs": [
            (job.identity, job.method, job.rank, job.iterations, job.prompt_id, job.prompt, job.seed) for job in jobs
        ],
    }
    if setting.values.get("strength", 1.0) != 1:
        config["strength"] = setting["strength"]
    if start is not None:
        config |= {"start": start.digest, "denoise": start.denoise}
    parents = {"/".join(Path(file).parts[-3:]): file_sha256(Path(file)) for file in files}
    return Artifact(setting.folder("generate", label, Artifact(Path(), config, parents).hash), config, parents)


def embedded_prompts(setting: Setting, prompts: Collection[str]) -> dict[str, TextEmbedding]:
    """Prompts from the cache or into it, with the empty one where drawing needs it."""
    empty = [""] if setting.backbone.needs_empty_prompt else []
    return LatentCache(setting.cache_root, setting.backbone).texts([*prompts, *empty])


def start_of(setting: Setting) -> Start | None:
    """The picture that `init_image` and `mask` name, cut to `sampling.size`; None: images start from noise alone."""
    image, mask = (setting.values.get(key) for key in ("init_image", "mask"))
    if image is None:
        if mask is not None:
            raise UserError("a mask without a picture", expected="init_image=PATH", got="none", key="init_image")
        return None
    height, width = setting.numbers("sampling.size", least=1, count=2)
    return load_start(
        Path(image),
        Path(mask) if mask else None,
        size=(height, width),
        denoise=setting["denoise"],
        steps=setting["sampling.steps"],
    )


def generate(
    setting: Setting,
    *,
    jobs: Sequence[GenerationJob],
    label: str,
    overwrite: bool = True,
    progress: Progress,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Make the images that are not there yet; returns their folder (images/ and manifest.jsonl).

    Args:
        overwrite: whether an image that is there may make way for another one under its name.
        say: told one line about memory.
    """
    artifact = artifact_of(setting, jobs=jobs, label=label)
    with artifact.making(progress) as owned:
        if owned is not None:
            _draw(setting, artifact, jobs=jobs, overwrite=overwrite, progress=owned, say=say)
    return artifact.folder


def _draw(
    setting: Setting,
    artifact: Artifact,
    *,
    jobs: Sequence[GenerationJob],
    overwrite: bool,
    progress: Progress,
    say: Callable[[str], None] | None,
) -> None:
    """What is missing of a folder of images that this process owns."""
    artifact.begin(anew=overwrite)  # else what it holds stays what it is
    sampling = setting["sampling"]
    height, width = setting.numbers("sampling.size", least=1, count=2)
    check_size(setting.backbone, (height, width))  # before anything is embedded
    texts = embedded_prompts(setting, {job.prompt for job in jobs})
    plan = plan_generation(
        setting,
        texts=texts,
        batch=min(sampling["batch_size"], len(jobs)),
        rank=max(job.rank for job in jobs),
        size=(height, width),
        say=say,
    )
    make_images(
        setting.backbone,
        jobs,
        steps=sampling["steps"],
        guidance=sampling["guidance"],
        size=(height, width),
        batch_size=sampling["batch_size"],
        texts=texts,
        strength=setting.values.get("strength", 1.0),
        start=start_of(setting),
        out=artifact.folder,
        overwrite=overwrite,
        progress=progress,
    )
    artifact.finish(images=len(jobs), **measured(setting, plan, say=say))
