"""`metalora generate`: images from an exported LoRA file, or from the untouched base."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from metalora.adapters.artifacts import file_sha256, load_lora
from metalora.core.errors import UserError
from metalora.inference.generate import GenerationJob
from metalora.inference.generate import generate as make_images
from metalora.people.benchmark import load_prompts
from metalora.tasks.artifact import Artifact
from metalora.tasks.progress import Board, Progress
from metalora.tasks.setting import Setting, set_threads


def run(cfg: DictConfig) -> None:
    """The task behind the command line."""
    setting = Setting.of(cfg)
    set_threads(setting)
    lora = Path(setting["lora"]) if setting["lora"] else None
    prompts = setting["prompt"] if isinstance(setting["prompt"], list) else [setting["prompt"]]
    seeds = setting.numbers("seeds", least=0)
    if not prompts:
        raise UserError("nothing to generate", expected="at least one prompt", got="none", key="prompt")
    metadata = load_lora(lora).metadata if lora else {}
    # A prompt of the benchmark goes by its name there, so that `evaluate` can score the folder.
    names = load_prompts(Path(setting["benchmark.prompts"])).ids_by_text()
    jobs = [
        GenerationJob(
            identity=metadata.get("identity", lora.stem) if lora else "base",
            class_noun=str(metadata.get("class_noun", setting["class_noun"])),
            method=metadata.get("method", "lora") if lora else "base",
            rank=int(metadata.get("rank", 1)) if lora else 0,
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
        folder = generate(setting, jobs=jobs, label=lora.stem if lora else "base", progress=board.reporter("generate"))
        board.say(f"images: {folder}")


def artifact_of(setting: Setting, *, jobs: Sequence[GenerationJob], label: str) -> Artifact:
    """Where a set of images goes and what it depends on."""
    files = sorted({str(job.lora) for job in jobs if job.lora})
    config = {
        "task": "generate",
        "backbone": setting.backbone_key,
        "encoders": [setting.backbone.text_fingerprint, setting.backbone.encoder_fingerprint],
        "sampling": {key: value for key, value in setting["sampling"].items() if key != "batch_size"},
        "jobs": [
            (job.identity, job.method, job.rank, job.iterations, job.prompt_id, job.prompt, job.seed) for job in jobs
        ],
    }
    parents = {"/".join(Path(file).parts[-3:]): file_sha256(Path(file)) for file in files}
    return Artifact(setting.folder("generate", label, Artifact(Path(), config, parents).hash), config, parents)


def generate(setting: Setting, *, jobs: Sequence[GenerationJob], label: str, progress: Progress) -> Path:
    """Make the images that are not there yet; returns their folder (images/ and manifest.jsonl)."""
    artifact = artifact_of(setting, jobs=jobs, label=label)
    if artifact.complete:
        return artifact.folder
    artifact.begin()
    sampling = setting["sampling"]
    height, width = setting.numbers("sampling.size", least=1, count=2)
    make_images(
        setting.backbone,
        jobs,
        steps=sampling["steps"],
        guidance=sampling["guidance"],
        size=(height, width),
        batch_size=sampling["batch_size"],
        out=artifact.folder,
        progress=progress,
    )
    artifact.finish(images=len(jobs))
    return artifact.folder
