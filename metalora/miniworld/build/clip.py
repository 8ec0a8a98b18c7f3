"""Train mini-CLIP: which captions are true of which pictures, a batch at a time.

The mini world knows what is on every picture, so a caption counts as right for every picture of the batch it is true
of, not only for its own; that leaves no false negatives and every word learns from all pictures.
Legend: B batch, A attributes, L tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as functional
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from metalora.miniworld import vocabulary
from metalora.miniworld.build.alone import Alone
from metalora.miniworld.build.data import Corpus, generator
from metalora.miniworld.build.loop import Plan, fast_autocast, read_checkpoint, restore_module
from metalora.miniworld.build.models import TEXT_LENGTH, clip_config
from metalora.miniworld.build.traits import NEUTRAL, trait_prompts
from metalora.miniworld.build.wordlist import make_tokenizer
from metalora.miniworld.captions import ATTRIBUTES, caption
from metalora.miniworld.population import CLASS_NOUNS
from metalora.miniworld.shots import Shot

TRAITS = ("class_noun", *ATTRIBUTES)


@dataclass(frozen=True)
class ClipRecipe:
    """Length and sizes of mini-CLIP's training."""

    plan: Plan
    batch: int = 128
    rate: float = 2e-3
    traits: float = 3.0
    """Weight of the loss over prompts of one trait, without which rare words are learned last."""
    heads: int = 64
    """How many of a batch are seen as an enlarged head: what a face tells is small on a whole picture."""
    seed: int = 13


def trait_codes(corpus: Corpus) -> np.ndarray:
    """Every picture's value of every trait as a small integer, int8 [N, A]."""
    tables: dict[str, list[str]] = {"class_noun": list(CLASS_NOUNS)}
    for name in ATTRIBUTES:
        tables[name] = list(getattr(vocabulary, f"{name.upper()}S"))
    columns = [corpus.table[name].map({value: code for code, value in enumerate(tables[name])}) for name in TRAITS]
    return np.stack(columns, axis=1).astype(np.int8)


def describe(rng: np.random.Generator, class_noun: str, shot: Shot) -> tuple[str, np.ndarray]:
    """A caption that tells a random subset of the traits (class always), and the mask of those traits [A]."""
    share = rng.uniform(0.15, 0.9)
    include = {name for name in ATTRIBUTES if rng.random() < share}
    if not include:
        include = {str(rng.choice(ATTRIBUTES))}
    text = caption(class_noun, shot, include=include)
    told = np.array([True, *(name in include for name in ATTRIBUTES)])
    if shot.framing == "portrait":
        told[TRAITS.index("framing")] = False  # a portrait's framing goes without saying
    if "expression" in include and shot.expression == "neutral":
        head, comma, rest = text.partition(",")
        place = head.index(f"of a {class_noun}") + len(f"of a {class_noun}")
        text = f"{head[:place]} {NEUTRAL}{head[place:]}{comma}{rest}"
        if len(text.replace(",", " ,").split()) >= TEXT_LENGTH:
            return caption(class_noun, shot, include=include - {"expression"}), told & (
                np.array(TRAITS) != "expression"
            )
    return text, told


def matching_loss(logits_BB: Tensor, truth_BB: Tensor) -> Tensor:
    """Cross entropy both ways against uniform weights over all true pairs; rows are pictures, columns captions."""
    rows = -(functional.log_softmax(logits_BB, 1) * truth_BB).sum(1) / truth_BB.sum(1)
    columns = -(functional.log_softmax(logits_BB, 0) * truth_BB).sum(0) / truth_BB.sum(0)
    return (rows.mean() + columns.mean()) / 2


def trait_loss(logits_by_trait: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> Tensor:
    """Mean over the traits of the cross entropy of naming a picture's value."""
    losses = [functional.cross_entropy(logits, truth[trait]) for trait, logits in logits_by_trait.items()]
    return torch.stack(losses).mean()


HEAD_TRAITS = ("class_noun", "style", "pose", "expression", "light")
"""What an enlarged head still shows."""


def cut_heads(images_BCHW: Tensor, boxes_B4: np.ndarray, rng: np.random.Generator) -> Tensor:
    """A square around the face with hair and neck, 1.4 to 2.2 faces wide and a little off centre, as 64 x 64 pixels.

    Args:
        boxes_B4: x0, y0, x1, y1 of the faces in pixels.
    """
    count, (height, width) = len(images_BCHW), images_BCHW.shape[-2:]
    x0, y0, x1, y1 = boxes_B4.T
    side = (y1 - y0) * rng.uniform(1.4, 2.2, count)
    centre = np.stack([(x0 + x1) / 2, (y0 + y1) / 2]) + rng.uniform(-0.12, 0.12, (2, count)) * side
    theta = np.zeros((count, 2, 3), dtype=np.float32)
    theta[:, 0, 0], theta[:, 1, 1] = side / width, side / height
    theta[:, 0, 2], theta[:, 1, 2] = 2 * centre[0] / width - 1, 2 * centre[1] / height - 1
    grid = functional.affine_grid(torch.from_numpy(theta), [count, 3, 64, 64], align_corners=False)
    return functional.grid_sample(images_BCHW, grid, padding_mode="reflection", align_corners=False)


def make_clip(*, seed: int) -> torch.nn.Module:
    """An untrained mini-CLIP of open_clip's own class."""
    torch.manual_seed(seed)
    config = clip_config(vocabulary=len(make_tokenizer()))
    config["text_cfg"] = {key: value for key, value in config["text_cfg"].items() if key != "hf_tokenizer_name"}
    return open_clip.CLIP(**config)


def clip_pixels(images_BCHW: Tensor) -> Tensor:
    """Pictures of any shape as mini-CLIP sees them: squashed to 64 x 64, [-1, 1]."""
    if images_BCHW.shape[-2:] == (64, 64):
        return images_BCHW
    return functional.interpolate(
        images_BCHW, size=(64, 64), mode="bicubic", align_corners=False, antialias=True
    ).clamp(-1, 1)


def _augment(images_BCHW: Tensor, rng: np.random.Generator) -> Tensor:
    """Slight zoom, shift and blur: generated pictures are softer than rendered ones. No mirror: left is a word."""
    count = len(images_BCHW)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = torch.from_numpy(rng.uniform(0.92, 1.04, count)).float()
    theta[:, :, 2] = torch.from_numpy(rng.uniform(-0.05, 0.05, (count, 2))).float()
    grid = functional.affine_grid(theta, list(images_BCHW.shape), align_corners=False)
    x = functional.grid_sample(images_BCHW, grid, padding_mode="reflection", align_corners=False)
    soft = torch.from_numpy(rng.random(count) < 0.25)[:, None, None, None]
    blurred = functional.avg_pool2d(functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    x = torch.where(soft, (x + blurred) / 2, x)
    noise = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))
    return x + noise * torch.from_numpy(rng.uniform(0, 0.05, (count, 1, 1, 1)).astype(np.float32))


def _tokens(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    padded = tokenizer(texts, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt")
    return padded.input_ids


def train_clip(corpus: Corpus, *, recipe: ClipRecipe, state: Path, quiet: bool = False) -> dict[str, float]:
    """Train and leave `state/clip.safetensors`; continues from it when it is there.

    Returns:
        Steps, samples and seconds of the training.
    """
    model, tokenizer = make_clip(seed=recipe.seed), make_tokenizer()
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.98), foreach=True)
    training = Alone(model, optimizer, plan=recipe.plan, rate=recipe.rate, checkpoint=state / "clip.safetensors")
    batches = corpus.batches(batch=recipe.batch, seed=recipe.seed, start=training.start)
    boxes = corpus.table[["x0", "y0", "x1", "y1"]].to_numpy(dtype=float)
    codes, nouns, shots = trait_codes(corpus), corpus.table.class_noun.to_list(), corpus.table["shot"].to_list()
    traits = trait_prompts()
    grouped = {trait: [ids for group in prompts for ids in group] for trait, (_, prompts) in traits.items()}
    trait_tokens = _tokens(tokenizer, [text for texts in grouped.values() for text in texts])
    named = {
        trait: torch.from_numpy(
            corpus.table[trait].map({value: k for k, value in enumerate(values)}).to_numpy(copy=True)
        )
        for trait, (values, _) in traits.items()
    }
    model.train()

    def one_step(step: int) -> Mapping[str, float]:
        rng = generator(recipe.seed, "step", step)
        size, drawn = next(batches)
        positions, heads = drawn[recipe.heads :], drawn[: recipe.heads]
        told = [describe(rng, nouns[index], Shot.from_json(shots[index])) for index in positions]
        texts, masks = [text for text, _ in told], np.stack([mask for _, mask in told])
        ours = codes[positions]
        truth = (~masks[None] | (ours[:, None] == ours[None])).all(-1)  # [picture, caption]
        tokens = torch.cat([_tokens(tokenizer, texts), trait_tokens])
        images = clip_pixels(corpus.pixels(size, positions))
        if recipe.heads:
            images = torch.cat([images, cut_heads(corpus.pixels(size, heads), boxes[heads], rng)])
        with fast_autocast():
            features = model.encode_image(_augment(images, rng))
        seen, seen_heads = functional.normalize(features.float(), dim=-1).split([len(positions), len(heads)])
        read, prompts = functional.normalize(model.encode_text(tokens), dim=-1).split([len(texts), len(trait_tokens)])
        scale = model.logit_scale.exp().clamp(max=60)
        logits = scale * seen @ read.T
        pairs = dict(zip(grouped, prompts.split([len(texts) for texts in grouped.values()]), strict=True))
        means = {
            trait: functional.normalize(both.unflatten(0, (-1, 2)).mean(1), dim=-1) for trait, both in pairs.items()
        }
        naming = trait_loss(
            {trait: scale * seen @ mean.T for trait, mean in means.items()},
            {trait: values[torch.from_numpy(positions)] for trait, values in named.items()},
        )
        naming_heads = torch.zeros(())
        if recipe.heads:
            naming_heads = trait_loss(
                {trait: scale * seen_heads @ means[trait].T for trait in HEAD_TRAITS},
                {trait: named[trait][torch.from_numpy(heads)] for trait in HEAD_TRAITS},
            )
        loss = matching_loss(logits, torch.from_numpy(truth).float()) + recipe.traits * (naming + naming_heads)
        training.descend(loss, step=step)
        best = logits.detach().argmax(0)
        right = torch.from_numpy(truth)[best, torch.arange(len(best))].float().mean().item()
        return {"loss": loss.item(), "naming": naming.item(), "heads": naming_heads.item(), "right": right}

    return training.run(one_step, name="mini-CLIP", batch=recipe.batch, quiet=quiet)


def trained_clip(*, recipe: ClipRecipe, state: Path) -> torch.nn.Module:
    """The trained mini-CLIP."""
    model = make_clip(seed=recipe.seed)
    restore_module(model, read_checkpoint(state / "clip.safetensors")[0], "model.")
    return model.eval()
