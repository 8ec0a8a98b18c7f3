"""PuLID for FLUX.1-dev, through its repository's demo code as the paper does (App. F)."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from metalora.evaluation.baselines import sdxl
from metalora.evaluation.baselines.process import Missing, NoFace, digest, needed, run


def build(settings: dict[str, Any]) -> Callable[[dict[str, Any]], tuple[Any, dict[str, Any]]]:
    """The demo's generator; it keeps FLUX, the autoencoder and its own weights in models/ of the checkout."""
    code = sdxl.on_path(settings["code"], settings["repository"])
    weights = needed(settings["weights"]["adapter"], f"pulid_flux_{settings['version']}.safetensors, weights.adapter")
    os.chdir(code)  # its paths are relative to the checkout
    import numpy as np
    from app_flux import FluxGenerator

    arguments = Namespace(
        fp8=False, onnx_provider=settings["onnx_provider"], pretrained_model=str(weights), version=settings["version"]
    )
    try:
        generator = FluxGenerator("flux-dev", settings["device"], settings["offload"], False, arguments)
    except OSError as error:  # a download without a network, or without the licence
        raise Missing(f"weights of PuLID or FLUX.1-dev: {error}") from None
    facts = {
        "base_model": "FLUX.1-dev",
        "steps": settings["steps"],
        "guidance": settings["guidance"],
        "weights_sha256": digest(weights),
    }

    def draw(job: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        try:
            made = generated(job)
        except RuntimeError as error:
            if "align face fail" in str(error):  # its way of saying that the photo shows no face
                raise NoFace(f"the method finds no face in {job['reference']}") from None
            raise
        return sdxl.finished(made, settings), facts if job["reference"] else {**facts, "weights_sha256": ""}

    def generated(job: dict[str, Any]) -> Any:
        return generator.generate_image(
            width=settings["generate"],
            height=settings["generate"],
            num_steps=settings["steps"],
            start_step=settings["start_step"],
            guidance=settings["guidance"],
            seed=job["seed"],
            prompt=job["prompt"],
            id_image=np.asarray(sdxl.photo(job["reference"])) if job["reference"] else None,
            id_weight=settings["id_weight"],
            neg_prompt="",
            true_cfg=settings["true_cfg"],
            timestep_to_start_cfg=settings["time_to_start_cfg"],
            max_sequence_length=settings["max_sequence_length"],
        )[0]

    return draw


if __name__ == "__main__":
    sys.exit(run(build))
