"""What both stages do in a step: the loss that never couples people, and gradients clipped per person.

Shape legend: B batch, K identities present.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from metalora.adapters.bank import AdapterBank
from metalora.adapters.optimizer import clip_meta_down_, clip_rows_, part_norms
from metalora.core.contracts import Backbone, Batch, Sample, TextEmbedding, TrainingPerson
from metalora.core.device import sent
from metalora.core.errors import UserError
from metalora.core.flow import per_sample_loss
from metalora.core.metric_names import NORM_META_DOWN, NORM_MID, NORM_ROWS, NORM_UP


@dataclass(frozen=True)
class Recipe:
    """How a step learns (ai-toolkit's recipe where the paper is silent)."""

    learning_rate: float
    weight_decay: float = 0.01
    gradient_clip: float | None = None
    """Largest gradient norm of each identity, and of Meta-Down as a whole; None: no clipping."""
    guidance: float = 1.0
    """The guidance embedding during training."""

    def check(self, *, section: str = "") -> None:
        """Refuse what would not learn, or away from the data.

        Args:
            section: of the configuration that the values stand in, e.g. "stage1."

        Raises:
            UserError: naming the value.
        """
        clip = self.gradient_clip
        for key, sound, expected in (
            ("learning_rate", 0 < self.learning_rate < inf, "a number above 0"),
            ("weight_decay", 0 <= self.weight_decay < inf, "0 or more"),
            ("gradient_clip", clip is None or clip > 0, "a norm above 0, or null: no clipping"),
        ):
            if not sound:
                name, got = key.replace("_", " "), str(getattr(self, key))
                raise UserError(f"no such {name}", expected=expected, got=got, key=f"{section}{key}")


@dataclass(frozen=True)
class StepLoss:
    """The loss of a step, two ways."""

    total: Tensor
    """Sum over identities of each one's own mean: what is differentiated."""
    mean: Tensor
    """The same divided by the iteration's number of identities, detached: what is logged. Where several processes share
    an iteration, each one's part of the sum."""
    finite_B: Tensor
    """Which samples' losses are numbers, as booleans on the device: looking at them is left to `FiniteLoss`."""


@dataclass(frozen=True)
class GradientNorms:
    """Norms before clipping, each a scalar."""

    meta_down: Tensor
    """Of Meta-Down as a whole; 0 where it has no gradient."""
    rows: Tensor
    """Mean over identities of each one's norm."""
    mid: Tensor | None = None
    """The same of Mid alone (without Meta-Down: of Down), where it was asked for."""
    up: Tensor | None = None
    """The same of Up alone."""

    def named(self) -> dict[str, Tensor]:
        """What was measured, by the name it is logged under."""
        found = {NORM_META_DOWN: self.meta_down, NORM_ROWS: self.rows, NORM_MID: self.mid, NORM_UP: self.up}
        return {metric.name: norm for metric, norm in found.items() if norm is not None}


def embedded(backbone: Backbone, people: Iterable[TrainingPerson]) -> dict[str, TextEmbedding]:
    """Everybody's caption to its embedding, a single row; the text encoders leave memory again."""
    texts = {caption: backbone.encode_text([caption]) for caption in sorted({person.caption for person in people})}
    backbone.release_encoders()
    return texts


def identity_weights(samples: Sequence[Sample]) -> Tensor:
    """1 / (samples of the same identity) for every sample: [B]; they sum to the number of identities."""
    counts = Counter(sample.identity for sample in samples)
    return torch.tensor([1.0 / counts[sample.identity] for sample in samples])


def diffusion_loss(backbone: Backbone, bank: AdapterBank, batch: Batch, *, guidance: float) -> StepLoss:
    """L_diff of section 3.1 on a batch that may mix identities.

    A mean over the batch would scale each person's gradient by the number of batch mates; the sum over identities of
    each one's own mean gives everyone the gradient of training alone.

    Args:
        guidance: the guidance embedding during training.
    """
    if not batch.samples:
        nothing = torch.zeros((), device=bank.rows.device)
        none_B = torch.ones(0, dtype=torch.bool, device=bank.rows.device)
        return StepLoss(total=nothing.clone().requires_grad_(), mean=nothing, finite_B=none_B)
    bank.set_route(batch.rows_B)
    objective, given = backbone.objective, (batch.latents_BCHW, batch.noise_BCHW, batch.t_B)
    x_t_BCHW = objective.noisy(*given)
    prediction_BCHW = backbone.predict(x_t_BCHW, t_B=batch.t_B, text=batch.text, guidance=guidance)
    loss_B = per_sample_loss(prediction_BCHW, objective.target(*given))
    weight_B = sent(identity_weights(batch.samples), loss_B.device)
    total = (loss_B * weight_B).sum()
    mean = total.detach() / (batch.people or len({sample.identity for sample in batch.samples}))
    return StepLoss(total=total, mean=mean, finite_B=loss_B.detach().isfinite())


def clip_gradients(bank: AdapterBank, *, max_norm: float | None, parts: bool = False) -> GradientNorms:
    """Clip each identity's gradient by its own norm and Meta-Down's by its own; None only measures.

    Args:
        parts: measure Mid and Up apart too, for the row of metrics that is due.
    """
    limit = float("inf") if max_norm is None else max_norm
    mid, up = [norms_K.mean() for norms_K in part_norms(bank)] if parts else (None, None)
    rows = clip_rows_(bank, max_norm=limit).mean()
    if any(parameter.grad is not None for parameter in bank.meta_down.values()):
        return GradientNorms(meta_down=clip_meta_down_(bank, max_norm=limit), rows=rows, mid=mid, up=up)
    return GradientNorms(meta_down=torch.zeros(()), rows=rows, mid=mid, up=up)
