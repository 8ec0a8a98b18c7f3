"""What InstantID's and PhotoMaker's runners share: SDXL or SDXL-Lightning, Euler, the plain base, the largest face."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metalora.evaluation.baselines.process import Missing, NoFace, needed


def check(settings: dict[str, Any]) -> None:
    """Look for the base model and SDXL-Lightning's U-Net: said at once, not after all that a method imports.

    Raises:
        Missing: one of them is not there.
    """
    base = settings["weights"]["base"]
    if base and Path(base).is_absolute():  # another name may be one of the hub's
        needed(base, f"SDXL, weights.base={base}")
    if settings["lightning"]:
        needed(settings["weights"]["unet"], "SDXL-Lightning's U-Net, weights.unet")


def load(kind: Any, settings: dict[str, Any], **parts: Any) -> Any:
    """An SDXL pipeline of a class, with SDXL-Lightning's U-Net where `weights.unet` names one, and Euler's scheduler.

    Args:
        kind: the class, StableDiffusionXLPipeline or a descendant.
        parts: modules that the class needs beside SDXL's.

    Raises:
        Missing: the base model is not there (or see `check`).
    """
    import torch
    from diffusers import EulerDiscreteScheduler

    dtype = getattr(torch, settings["dtype"])
    base = settings["weights"]["base"]
    try:
        pipe = kind.from_pretrained(base, torch_dtype=dtype, **parts)
    except (OSError, ValueError) as error:  # neither a folder nor in the hub's cache, and no network; or no name at all
        raise Missing(f"SDXL, weights.base={base}: {error}") from None
    if settings["lightning"]:
        from safetensors.torch import load_file

        pipe.unet.load_state_dict(load_file(str(settings["weights"]["unet"])))
        pipe.unet.to(dtype)
    spacing = {"timestep_spacing": settings["timestep_spacing"]} if settings["timestep_spacing"] else {}
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, **spacing)
    if settings["sigmas"]:
        fix_sigmas(pipe.scheduler, settings["sigmas"])
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(settings["device"])


def fix_sigmas(scheduler: Any, sigmas: list[float]) -> None:
    """Make every run of an Euler scheduler go through these noise levels, the last of which is 0, whatever it is asked.

    The timestep of a level is where the training's levels have it, interpolated in their logarithm.
    """
    import numpy as np
    import torch

    alphas = scheduler.alphas_cumprod.double().cpu().numpy()
    trained = np.log(np.sqrt((1 - alphas) / alphas))
    timesteps = np.interp(np.log(sigmas[:-1]), trained, np.arange(len(trained)))
    original = scheduler.set_timesteps

    def set_timesteps(*_: Any, device: Any = None, **__: Any) -> None:
        original(len(sigmas) - 1, device=device)  # it resets whatever else a scheduler of this version counts
        scheduler.timesteps = torch.tensor(timesteps, dtype=torch.float32, device=device)
        scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float32)
        scheduler.num_inference_steps = len(sigmas) - 1

    scheduler.set_timesteps = set_timesteps


def plain(pipe: Any) -> Any:
    """The untouched base around the very same modules: what CLIP-I compares with."""
    from diffusers import StableDiffusionXLPipeline

    names = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler")
    base = StableDiffusionXLPipeline(**{name: getattr(pipe, name) for name in names})
    base.set_progress_bar_config(disable=True)
    return base


def common(settings: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
    """Arguments of every SDXL call."""
    import torch

    return {
        "negative_prompt": settings["negative_prompt"],
        "num_inference_steps": settings["steps"],
        "guidance_scale": settings["guidance"],
        "height": settings["generate"],
        "width": settings["generate"],
        "generator": torch.Generator("cpu").manual_seed(job["seed"]),
    }


def finished(image: Any, settings: dict[str, Any]) -> Any:
    """Resized to the size that is scored."""
    side = settings["resize_to"]
    return image if image.size == (side, side) else image.resize((side, side), resample=3)


def facts(settings: dict[str, Any], weights_sha256: str) -> dict[str, Any]:
    """What belongs into a line beside the job."""
    model = "SDXL-Lightning" if settings["lightning"] else "SDXL"
    return {
        # another size is another image from the same noise, and so another base, whatever is scored in the end
        "base_model": model
        if settings["generate"] == settings["resize_to"]
        else f"{model} at {settings['generate']} px",
        "steps": settings["steps"],
        "guidance": settings["guidance"],
        "weights_sha256": weights_sha256,
    }


def photo(path: str) -> Any:
    """A photo, upright, in RGB."""
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def bgr(image: Any) -> Any:
    """As insightface takes pictures."""
    import numpy as np

    return np.ascontiguousarray(np.asarray(image)[:, :, ::-1])


def largest(faces: list[Any], path: str) -> Any:
    """Of the faces that insightface found, the one with the largest box.

    Raises:
        NoFace: there is none.
    """
    if not faces:
        raise NoFace(f"the method finds no face in {path}")
    return max(faces, key=lambda face: (face["bbox"][2] - face["bbox"][0]) * (face["bbox"][3] - face["bbox"][1]))


def on_path(code: Any, repository: str) -> Path:
    """Put a checkout in front of the import path.

    Raises:
        Missing: there is no such folder.
    """
    import sys

    folder = needed(code, f"a checkout of {repository}, code")
    sys.path.insert(0, str(folder))
    return folder
