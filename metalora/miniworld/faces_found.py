"""Whether MTCNN finds a face in small pictures, rendered or generated, frontal ones of every style.

Legend: N pictures, H height, W width.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from metalora.miniworld.check import PROBABILITY, draw
from metalora.miniworld.population import CLASS_NOUNS
from metalora.miniworld.renderer import render
from metalora.miniworld.vocabulary import POSES, STYLES

ENLARGED = 160
KEEPS_A_FACE = 0.75
"""A style keeps a face when MTCNN finds it in at least this share of its rendered frontal pictures."""


def to_pixels(images_NHWC: np.ndarray) -> Tensor:
    """uint8 pictures to [N, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).float() / 127.5 - 1


def faces_found(images_NCHW: Tensor) -> np.ndarray:
    """Whether a face is found in each picture [N], values in [-1, 1], enlarged to 160 px."""
    large = functional.interpolate(images_NCHW, size=(ENLARGED,) * 2, mode="bicubic", align_corners=False).clamp(-1, 1)
    pictures = ((large + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    _, scores = _detector().detect(list(pictures))
    best = [max((float(p) for p in found if p is not None), default=0.0) for found in scores]
    return np.array(best) > PROBABILITY


def frontal_prompts(style: str, count: int) -> list[str]:
    """Captions of frontal pictures in a style, men and women in turn."""
    return [f"{STYLES[style]} of a {CLASS_NOUNS[k % 2]}, {POSES['front']}" for k in range(count)]


def rendered_frontal(style: str, count: int, *, seed: int) -> Tensor:
    """Rendered frontal pictures [N, 3, 64, 64] in [-1, 1] of people whom no training saw."""
    return to_pixels(render(*draw(count, seed=seed, style=style, pose="front"), height=64, width=64))


@cache
def _detector() -> Any:
    from facenet_pytorch import MTCNN

    return MTCNN(image_size=ENLARGED, device="cpu", select_largest=False, post_process=False)
