"""Small runs of both stages that several test modules share; importable by worker processes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from metalora.adapters.artifacts import Prior
from metalora.core.contracts import Backbone, TextEmbedding, TrainingImage, TrainingPerson
from metalora.training.meta_training import run_meta_training
from metalora.training.personalization import Personalized, run_personalization

CAPTION = "a photo of a woman"
SHAPES = [(4, 4), (2, 6)]
"""Latent shapes: 16 and 12 tokens of the tiny FLUX's 2x2 packing."""

STAGE1: dict[str, Any] = {
    "meta_rank": 4,
    "q_bucket": 8,
    "q_warmup": 3,
    "q_total": 30,
    "uses_per_example": 8 * 4 / 12,  # two people of six images per bucket
    "batch_size": 4,
    "learning_rate": 1e-2,
    "seed": 0,
    "log_every": 1,
    "checkpoint_seconds": 1e9,  # a slow machine saves no more often than a fast one
}
STAGE2: dict[str, Any] = {
    "rank": 2,
    "meta_rank": None,
    "learning_rate": 1e-2,
    "seed": 0,
    "log_every": 1,
    "checkpoint_seconds": 1e9,
}


def make_people(count: int, *, prefix: str = "p") -> list[TrainingPerson]:
    """People with three random latents of each shape."""
    people = []
    for k in range(count):
        draw = torch.Generator().manual_seed(k)
        images = [
            TrainingImage(torch.randn(2, 4, *shape, generator=draw), (shape[0] * 4, shape[1] * 4), f"{shape} {number}")
            for shape in SHAPES
            for number in range(3)
        ]
        people.append(TrainingPerson(f"{prefix}{k}", CAPTION, tuple(images)))
    return people


def make_texts() -> dict[str, TextEmbedding]:
    """The caption's embedding, made up: no text encoder is loaded."""
    draw = torch.Generator().manual_seed(99)
    return {CAPTION: TextEmbedding(torch.randn(1, 8, 16, generator=draw), torch.randn(1, 16, generator=draw))}


def make_prior(backbone: Backbone, *, meta_rank: int = 4) -> Prior:
    """A random prior that fits the backbone."""
    draw = torch.Generator().manual_seed(7)
    layers = backbone.target_layers()
    return Prior(
        {name: torch.randn(meta_rank, layer.in_features, generator=draw) / 8 for name, layer in layers.items()},
        {"meta_rank": str(meta_rank), "backbone_fingerprint": backbone.fingerprint, "backbone": backbone.name},
    )


def stage1(backbone: Backbone, out: Path, *, people: int = 6, **changes: Any) -> Path:
    """A Stage 1 of three buckets and four visits, the last one cut short."""
    return run_meta_training(backbone, make_people(people), texts=make_texts(), out=out, **(STAGE1 | changes))


def stage2(backbone: Backbone, out: Path, *, people: Any = 3, **changes: Any) -> Personalized:
    """A Stage 2 of a few people with Meta-LoRA."""
    who = make_people(people) if isinstance(people, int) else people
    settings = STAGE2 | {"method": "meta_lora", "prior": make_prior(backbone), "iterations": [10, 20], **changes}
    return run_personalization(backbone, who, texts=make_texts(), out=out, **settings)


def before_call(function: Callable[..., Any], number: int, act: Callable[[], None]) -> Callable[..., Any]:
    """`function`, which does `act` before its `number`-th call (from 1)."""
    calls = 0

    def wrapped(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            act()
        return function(*arguments, **options)

    return wrapped


def same_file(one: Path, other: Path) -> bool:
    """Whether two files are bitwise equal."""
    return one.read_bytes() == other.read_bytes()
