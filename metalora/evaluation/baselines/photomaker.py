"""PhotoMaker V2 on SDXL and SDXL-Lightning, with its repository's pipeline (App. F)."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

from metalora.evaluation.baselines import sdxl
from metalora.evaluation.baselines.process import digest, needed, run

TRIGGER = "img"


def build(settings: dict[str, Any]) -> Callable[[dict[str, Any]], tuple[Any, dict[str, Any]]]:
    """The pipeline with the V2 adapter and insightface."""
    sdxl.on_path(settings["code"], settings["repository"])
    adapter = needed(settings["weights"]["adapter"], "photomaker-v2.bin, weights.adapter")
    sdxl.check(settings)
    import torch
    from photomaker import FaceAnalysis2, PhotoMakerStableDiffusionXLPipeline, analyze_faces

    more = {"root": str(settings["weights"]["faces"])} if settings["weights"]["faces"] else {}
    analysis = FaceAnalysis2(providers=settings["providers"], allowed_modules=["detection", "recognition"], **more)
    analysis.prepare(ctx_id=0, det_size=(640, 640))
    base = sdxl.plain(sdxl.load(PhotoMakerStableDiffusionXLPipeline, settings))
    pipe = sdxl.load(PhotoMakerStableDiffusionXLPipeline, settings)  # the adapter's LoRA is fused into its own U-Net
    pipe.load_photomaker_adapter(
        str(adapter.parent), subfolder="", weight_name=adapter.name, trigger_word=TRIGGER, pm_version="v2"
    )
    pipe.fuse_lora()
    facts = sdxl.facts(settings, digest(adapter))

    def draw(job: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if not job["reference"]:
            made = base(prompt=job["prompt"], **sdxl.common(settings, job)).images[0]
            return sdxl.finished(made, settings), {**facts, "weights_sha256": ""}
        picture = sdxl.photo(job["reference"])
        face = sdxl.largest(analyze_faces(analysis, sdxl.bgr(picture)), job["reference"])
        made = pipe(
            prompt=with_trigger(job["prompt"], job["class_noun"]),
            input_id_images=[picture],
            id_embeds=torch.stack([torch.from_numpy(face["embedding"])]),
            start_merge_step=settings["start_merge_step"],
            **sdxl.common(settings, job),
        ).images[0]
        return sdxl.finished(made, settings), facts

    return draw


def with_trigger(prompt: str, class_noun: str) -> str:
    """The prompt with the trigger word behind the class noun, once: "A man img in ..."."""
    found, count = re.subn(rf"\b{re.escape(class_noun)}\b", f"{class_noun} {TRIGGER}", prompt, count=1)
    if not count:
        raise ValueError(f"no {class_noun} in the prompt {prompt!r}")
    return found


if __name__ == "__main__":
    sys.exit(run(build))
