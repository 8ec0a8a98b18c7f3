"""InstantID on SDXL and SDXL-Lightning, with the original repository's pipeline (App. F)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from metalora.evaluation.baselines import sdxl
from metalora.evaluation.baselines.process import digest, needed, run


def build(settings: dict[str, Any]) -> Callable[[dict[str, Any]], tuple[Any, dict[str, Any]]]:
    """The pipeline with IdentityNet, the adapter and insightface's antelopev2."""
    weights = settings["weights"]
    sdxl.on_path(settings["code"], settings["repository"])
    controlnet_path = needed(weights["controlnet"], "InstantID's IdentityNet (ControlNetModel), weights.controlnet")
    adapter = needed(weights["adapter"], "InstantID's ip-adapter.bin, weights.adapter")
    faces_root = needed(weights["faces"], "the folder that has insightface's models/antelopev2, weights.faces")
    sdxl.check(settings)
    import torch
    from diffusers.models import ControlNetModel
    from insightface.app import FaceAnalysis
    from pipeline_stable_diffusion_xl_instantid import StableDiffusionXLInstantIDPipeline, draw_kps

    analysis = FaceAnalysis(name="antelopev2", root=str(faces_root), providers=settings["providers"])
    analysis.prepare(ctx_id=0, det_size=(640, 640))
    controlnet = ControlNetModel.from_pretrained(str(controlnet_path), torch_dtype=getattr(torch, settings["dtype"]))
    pipe = sdxl.load(StableDiffusionXLInstantIDPipeline, settings, controlnet=controlnet)
    base = sdxl.plain(pipe)
    usual = dict(base.unet.attn_processors)  # the adapter replaces them
    pipe.load_ip_adapter_instantid(str(adapter))
    pipe.set_ip_adapter_scale(settings["ip_adapter_scale"])
    adapted = dict(pipe.unet.attn_processors)
    facts = sdxl.facts(settings, digest(controlnet_path, adapter))

    def draw(job: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if not job["reference"]:
            pipe.unet.set_attn_processor(dict(usual))
            made = base(prompt=job["prompt"], **sdxl.common(settings, job)).images[0]
            return sdxl.finished(made, settings), {**facts, "weights_sha256": ""}
        pipe.unet.set_attn_processor(dict(adapted))
        picture = _square(sdxl.photo(job["reference"]), side=settings["reference_side"])
        face = sdxl.largest(analysis.get(sdxl.bgr(picture)), job["reference"])
        made = pipe(
            prompt=job["prompt"],
            image_embeds=face["embedding"],
            image=draw_kps(picture, face["kps"]),
            controlnet_conditioning_scale=settings["controlnet_conditioning_scale"],
            **sdxl.common(settings, job),
        ).images[0]
        return sdxl.finished(made, settings), facts

    return draw


def _square(picture: Any, *, side: int) -> Any:
    """The photo on a white square: the landmarks' picture is stretched to the size of the image that is drawn."""
    from PIL import Image, ImageOps

    fitted = ImageOps.contain(picture, (side, side))
    square = Image.new("RGB", (side, side), (255, 255, 255))
    square.paste(fitted, ((side - fitted.width) // 2, (side - fitted.height) // 2))
    return square


if __name__ == "__main__":
    sys.exit(run(build))
