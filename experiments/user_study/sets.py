"""The images that part 2 needs, from the LoRAs of a finished `make reproduce`, which drew one seed only.

    python -m experiments.user_study.sets [FOLDER] [OUT]     # outputs/reproduce and outputs/reproduce/sets

The people of the ffhq part, every scene and style prompt, three seeds, LoRA and LoRA+aug at 625 and Meta-LoRA at 375
iterations. Run again, it continues.
"""

import sys
from pathlib import Path

from hydra import compose, initialize_config_dir

from metalora.cli import register_resolvers
from metalora.configuration import conf_dir
from metalora.core.errors import UserError
from metalora.inference.generate import GenerationJob, generate
from metalora.people.benchmark import load_prompts
from metalora.running.artifact import Artifact
from metalora.running.progress import Board
from metalora.running.setting import Setting, set_threads
from metalora.tasks.generate import artifact_of

CHECKPOINTS = {"lora": 625, "lora_aug": 625, "meta_lora": 375}
SEEDS = (0, 1, 2)


def main(folder: Path, out: Path) -> None:
    """Draw every method's images into OUT/METHOD."""
    register_resolvers()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        setting = Setting.of(compose("config", overrides=["task=reproduce"]))
    set_threads(setting)
    prompts = load_prompts(Path(setting["benchmark.prompts"]))
    with Board() as board:
        for method, iterations in CHECKPOINTS.items():
            loras = sorted(folder.glob(f"personalize/{method}-r1-*/ffhq-*/lora-{iterations:06d}.safetensors"))
            if not loras:
                raise UserError(f"no LoRAs of {method} in {folder}", expected="a finished `make reproduce`")
            jobs = [
                GenerationJob(lora.parent.name, noun, method, 1, iterations, lora, prompt.id, prompt.text, seed)
                for lora in loras
                for noun in [lora.parent.name.split("-")[1]]
                for prompt in prompts.of("clip", noun)
                for seed in SEEDS
            ]
            made = artifact_of(setting, jobs=jobs, label=method)
            images = Artifact(out / method, made.config, made.parents)
            if images.complete:
                continue
            images.begin()
            generate(
                setting.backbone,
                jobs,
                **{key: setting["sampling"][key] for key in ("steps", "guidance", "size", "batch_size")},
                out=images.folder,
                progress=board.reporter(method),
            )
            images.finish(images=len(jobs))


if __name__ == "__main__":
    given = [Path(word) for word in sys.argv[1:]]
    source = given[0] if given else Path("outputs/reproduce")
    try:
        main(source, given[1] if len(given) > 1 else source / "sets")
    except UserError as error:
        raise SystemExit(f"sets: {error}") from None
