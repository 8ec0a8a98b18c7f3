"""Train the face embedder: CosFace on crops of the base people, augmented by all that a score must not depend on.

Legend: B batch, K people, E embedding.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from safetensors.torch import load_file
from torch import Tensor, nn

from metalora.core.face_net import FACE_SIZE, FaceResNet
from metalora.miniworld.build.alone import Alone
from metalora.miniworld.build.data import Corpus, generator
from metalora.miniworld.build.loop import Plan, fast_autocast, read_checkpoint, restore_module

CROP_MARGIN = 1.15
"""Side of the square crop over the longer side of the face box."""


@dataclass(frozen=True)
class FaceRecipe:
    """Sizes of the embedder and of its training."""

    plan: Plan
    batch: int = 96
    rate: float = 2e-3
    widths: tuple[int, ...] = (64, 128, 192)
    depths: tuple[int, ...] = (2, 2, 1)
    dimension: int = 128
    margin: float = 0.3
    scale: float = 30.0
    photo_share: float = 0.75
    seed: int = 12

    def network(self) -> dict[str, Any]:
        """Arguments of `FaceResNet`."""
        return {"widths": list(self.widths), "depths": list(self.depths), "dimension": self.dimension}

    def config(self) -> dict[str, Any]:
        """What config.json tells: the class, its arguments and how faces are cut."""
        return {"class": "FaceResNet", **self.network(), "crop_margin": CROP_MARGIN}


def crop_faces(
    images_BCHW: Tensor,
    boxes_B4: np.ndarray,
    *,
    margin: np.ndarray | float = CROP_MARGIN,
    shift: np.ndarray | float = 0.0,
) -> Tensor:
    """Square crops [B, 3, 64, 64] around face boxes (x0, y0, x1, y1 in pixels), beyond the picture by its edge.

    Args:
        margin: side of the crop over the longer side of the box, one number or [B].
        shift: displacement of the centre in box sides, one number or [B, 2].
    """
    height, width = images_BCHW.shape[-2:]
    corners = torch.from_numpy(np.asarray(boxes_B4, dtype=np.float32))
    centre, sides = (corners[:, :2] + corners[:, 2:]) / 2, (corners[:, 2:] - corners[:, :2]).max(dim=1).values
    centre = centre + torch.as_tensor(shift, dtype=torch.float32) * sides[:, None]
    half = sides * torch.as_tensor(margin, dtype=torch.float32) / 2
    theta = torch.zeros(len(corners), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = 2 * half / width, 2 * half / height
    theta[:, 0, 2], theta[:, 1, 2] = 2 * centre[:, 0] / width - 1, 2 * centre[:, 1] / height - 1
    # A crop larger than 64 px is sampled at twice the resolution and averaged, or fine lines would alias.
    fine = 2 if bool((2 * half).median() > 1.5 * FACE_SIZE) else 1
    grid = functional.affine_grid(theta, [len(corners), 3, fine * FACE_SIZE, fine * FACE_SIZE], align_corners=False)
    crops = functional.grid_sample(images_BCHW, grid, padding_mode="border", align_corners=False)
    return functional.avg_pool2d(crops, fine) if fine > 1 else crops


def augment(crops_BCHW: Tensor, *, rng: np.random.Generator) -> Tensor:
    """Flips, colour and light, loss of resolution (18 to 56 px and back, two thirds of the crops), noise."""
    count = len(crops_BCHW)
    flip = torch.from_numpy(rng.random(count) < 0.5)[:, None, None, None]
    x = torch.where(flip, crops_BCHW.flip(-1), crops_BCHW)
    groups = np.array_split(rng.permutation(count), 6)
    x = x.clone()
    for group in groups[:4]:
        side = int(np.exp(rng.uniform(np.log(18), np.log(56))))
        small = functional.interpolate(x[group], size=(side, side), mode="area")
        mode = "bicubic" if rng.random() < 0.5 else "bilinear"
        x[group] = functional.interpolate(small, size=(FACE_SIZE, FACE_SIZE), mode=mode, align_corners=False)

    def drawn(low: float, high: float, *shape: int) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, *shape, 1, 1)).astype(np.float32))

    x = (x * drawn(0.75, 1.3, 1) + drawn(-0.2, 0.2, 1)) * drawn(0.93, 1.07, 3)
    noise = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))
    return (x + noise * drawn(0.0, 0.06, 1)).clamp(-1, 1)


def cosface_loss(features_BE: Tensor, centres_KE: Tensor, labels_B: Tensor, *, margin: float, scale: float) -> Tensor:
    """Cross entropy over scaled cosines with the true person's lowered by a margin (Wang et al. 2018, eq. 4)."""
    cosines = functional.normalize(features_BE, dim=-1) @ functional.normalize(centres_KE, dim=-1).T
    lowered = cosines - margin * functional.one_hot(labels_B, len(centres_KE))
    return functional.cross_entropy(scale * lowered, labels_B)


class _Faces:
    """Draws batches of crops with labels; every batch is a pure function of (seed, step)."""

    def __init__(self, corpora: list[Corpus], *, recipe: FaceRecipe) -> None:
        self.corpora, self.recipe = corpora, recipe
        names = sorted({name for corpus in corpora for name in corpus.table.identity})
        self.people = {name: index for index, name in enumerate(names)}
        # every corpus: its people, and its rows by (size, is a photo)
        self.rows = [
            {
                key: group.index.to_numpy()
                for key, group in corpus.table.groupby(["size", corpus.table["style"] == "photo"])
            }
            for corpus in corpora
        ]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        rng = generator(self.recipe.seed, "faces", step)
        crops, labels = [], []
        for _ in range(4):  # four groups of one corpus and one size each: crops are cut from stacked pictures
            index = int(rng.integers(len(self.corpora)))
            corpus, rows = self.corpora[index], self.rows[index]
            sizes = sorted({size for size, _ in rows})
            shares = np.array([sum(len(v) for (s, _), v in rows.items() if s == size) for size in sizes], dtype=float)
            size = str(rng.choice(sizes, p=shares / shares.sum()))
            photos = rows.get((size, True), np.zeros(0, dtype=int))
            others = rows.get((size, False), np.zeros(0, dtype=int))
            wanted = self.recipe.batch // 4
            from_photos = wanted if len(others) == 0 else int(rng.binomial(wanted, self.recipe.photo_share))
            from_photos = 0 if len(photos) == 0 else from_photos
            picked = np.concatenate([rng.choice(photos, from_photos), rng.choice(others, wanted - from_photos)])
            picked = picked.astype(int)
            table = corpus.table.iloc[picked]
            boxes = table[["x0", "y0", "x1", "y1"]].to_numpy()
            margin, shift = rng.uniform(1.0, 1.4, wanted), rng.normal(0, 0.05, (wanted, 2))
            crops.append(crop_faces(corpus.pixels(size, picked), boxes, margin=margin, shift=shift))
            labels.append(torch.tensor([self.people[name] for name in table.identity]))
        return augment(torch.cat(crops), rng=rng), torch.cat(labels)


def train_face(corpora: list[Corpus], *, recipe: FaceRecipe, state: Path, quiet: bool = False) -> dict[str, float]:
    """Train and leave `state/face.safetensors`; continues from it when it is there.

    Args:
        corpora: the corpus and, for sharp faces, one of larger pictures of the same people.

    Returns:
        Steps, samples and seconds of the training.
    """
    faces = _Faces(corpora, recipe=recipe)
    torch.manual_seed(recipe.seed)
    model = FaceResNet(**recipe.network())
    centres = nn.Parameter(torch.randn(len(faces.people), recipe.dimension) * 0.05)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": 0.05},
        {"params": [*vectors, centres], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.rate, foreach=True)
    training = Alone(
        model,
        optimizer,
        plan=recipe.plan,
        rate=recipe.rate,
        checkpoint=state / "face.safetensors",
        clip=5.0,
        beside={"centres": centres},
    )
    model.train()

    def one_step(step: int) -> Mapping[str, float]:
        crops, labels = faces.batch(step)
        with fast_autocast():
            features = model.features(crops)
        # The margin grows over the first quarter: from a random start a full one only pushes apart.
        margin = recipe.margin * min(1.0, step / max(1, recipe.plan.steps // 4))
        loss = cosface_loss(features.float(), centres, labels, margin=margin, scale=recipe.scale)
        training.descend(loss, step=step)
        with torch.no_grad():
            cosines = functional.normalize(features.float(), dim=-1) @ functional.normalize(centres, dim=-1).T
            right = (cosines.argmax(1) == labels).float().mean().item()
        return {"loss": loss.item(), "right": right}

    return training.run(one_step, name="face embedder", batch=recipe.batch, quiet=quiet)


def load_face(directory: Path) -> FaceResNet:
    """An exported embedder (config.json, model.safetensors), ready to embed."""
    config = json.loads((directory / "config.json").read_text())
    model = FaceResNet(widths=tuple(config["widths"]), depths=tuple(config["depths"]), dimension=config["dimension"])
    state = {
        name: value.float() if value.is_floating_point() else value
        for name, value in load_file(directory / "model.safetensors").items()
    }
    model.load_state_dict(state)
    return model.eval()


def trained_face(*, recipe: FaceRecipe, state: Path) -> FaceResNet:
    """The trained embedder, ready to embed."""
    model = FaceResNet(**recipe.network())
    restore_module(model, read_checkpoint(state / "face.safetensors")[0], "model.")
    return model.eval()
