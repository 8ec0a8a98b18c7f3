"""DreamBooth (Ruiz et al. 2023): the whole denoiser is trained on one person's photo, if asked with prior preservation.

What is kept of a person is the difference to the base in bf16, every weight of the denoiser.

Shape legend: B batch, C latent channels, H W latent height and width.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metalora.adapters.artifacts import read_tensors, write_tensors
from metalora.core.contracts import Backbone, Batch, TextEmbedding, TrainingPerson
from metalora.core.errors import UserError
from metalora.core.flow import per_sample_loss
from metalora.core.noise import generator, noise, timestep
from metalora.evaluation.rivals.rival import Progress, Sitter, file_of, missing
from metalora.people.collate import Collate
from metalora.people.sampler import CohortSampler

FORMAT = "metalora-dreambooth-1"
_CLASS_BATCH = 16


@dataclass(frozen=True)
class DreamBoothRecipe:
    """How the denoiser is trained."""

    learning_rate: float
    iterations: int
    crops: bool = False
    """App. D's crops and flips, as lora_aug has them; else the whole photo."""
    prior_images: int = 0
    """Images of the class that the base itself draws, for prior preservation; 0: without."""
    prior_weight: float = 1.0
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    guidance: float = 1.0


@dataclass(frozen=True)
class Sampling:
    """How the images of the class are drawn."""

    steps: int
    guidance: float
    size: tuple[int, int]


class DreamBooth:
    """Full fine-tuning; implements `Rival`.

    Args:
        texts: caption to its embedding, a single row.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        recipe: DreamBoothRecipe,
        texts: Mapping[str, TextEmbedding],
        sampling: Sampling,
        seed: int,
    ) -> None:
        self._backbone, self._recipe, self._texts = backbone, recipe, texts
        self._sampling, self._seed = sampling, seed
        self.name = "dreambooth_aug" if recipe.crops else "dreambooth"
        self.iterations, self.crops = recipe.iterations, recipe.crops
        self._class_latents: dict[str, Tensor] = {}

    def settings(self) -> Mapping[str, Any]:
        """The recipe; how the class is drawn counts where it is."""
        drawn = {"class": asdict(self._sampling)} if self._recipe.prior_images else {}
        return asdict(self._recipe) | drawn

    def learn(self, sitters: Sequence[Sitter], *, out: Path, progress: Progress) -> None:
        """Train the denoiser for one person after the other, each from the base."""
        todo = missing(sitters, out=out)
        for done, sitter in enumerate(todo, start=len(sitters) - len(todo) + 1):
            assert sitter.training is not None, sitter.identity
            difference = self._train(sitter.training)
            header = {"format": FORMAT, "identity": sitter.identity, "backbone": self._backbone.name}
            header |= {"backbone_fingerprint": self._backbone.fingerprint, "iterations": str(self.iterations)}
            write_tensors(file_of(out, sitter.identity), difference, metadata=header)
            progress(done, len(sitters))

    def _train(self, person: TrainingPerson) -> dict[str, Tensor]:
        """The difference in bf16 after training, by parameter."""
        backbone, recipe = self._backbone, self._recipe
        sampler = CohortSampler([person], batch_size=1, seed=self._seed, flips=recipe.crops)
        collate = Collate([person], texts=self._texts, objective=backbone.objective, seed=self._seed)
        kept = self._class_images(person.caption) if recipe.prior_images else None
        with _own_weights(backbone.denoiser) as before:
            parameters = [p.requires_grad_(True) for p in backbone.denoiser.parameters()]
            optimizer = torch.optim.AdamW(
                parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, eps=1e-6, fused=True
            )
            for iteration in range(recipe.iterations):
                loss = self._loss(collate(sampler.samples(iteration), iteration))
                if kept is not None:
                    loss = loss + recipe.prior_weight * self._loss(self._class_batch(kept, person, iteration))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, recipe.gradient_clip)
                optimizer.step()
            found = {
                name: (p.detach() - before[name]).to(torch.bfloat16).cpu()
                for name, p in backbone.denoiser.named_parameters()
            }
        if not all(bool(value.isfinite().all()) for value in found.values()):
            raise UserError(
                f"DreamBooth diverged on {person.identity}",
                expected="a smaller learning rate",
                got=f"{recipe.learning_rate:g}",
                key="dreambooth.learning_rate",
            )
        return found

    def _loss(self, batch: Batch) -> Tensor:
        backbone, device = self._backbone, self._backbone.device
        given = (batch.latents_BCHW.to(device), batch.noise_BCHW.to(device), batch.t_B.to(device))
        predicted_BCHW = backbone.predict(
            backbone.objective.noisy(*given), t_B=given[2], text=batch.text.to(device), guidance=self._recipe.guidance
        )
        return per_sample_loss(predicted_BCHW, backbone.objective.target(*given)).mean()

    def _class_batch(self, latents_NCHW: Tensor, person: TrainingPerson, iteration: int) -> Batch:
        """One of the class's images, with noise and time of its own."""
        key = {"seed": self._seed, "identity": f"class of {person.identity}", "iteration": iteration, "occurrence": 0}
        chosen = int(torch.randint(len(latents_NCHW), (), generator=generator("class image", *key.values())))
        text = self._texts[person.caption]
        return Batch(
            latents_BCHW=latents_NCHW[chosen][None],
            noise_BCHW=noise(latents_NCHW.shape[1:], **key)[None],
            t_B=timestep(**key, time_of=self._backbone.objective.time_of)[None],
            text=text,
            rows_B=torch.zeros(1, dtype=torch.long),
            samples=(),
            iteration=iteration,
        )

    @torch.no_grad()
    def _class_images(self, caption: str) -> Tensor:
        """Latents [N, C, H, W] of what the base draws of the caption: what is not to be forgotten."""
        if caption not in self._class_latents:
            backbone, sampling = self._backbone, self._sampling
            pipe, found = backbone.pipeline(text=False), []
            for start in range(0, self._recipe.prior_images, _CLASS_BATCH):
                count = min(_CLASS_BATCH, self._recipe.prior_images - start)
                text = self._texts[caption].rows(torch.zeros(count, dtype=torch.long)).to(backbone.device)
                drawing = backbone.drawing(text, empty=self._texts.get(""), guidance=sampling.guidance)
                pixels_B3HW = pipe(
                    generator=[generator("class", self._seed, caption, start + k) for k in range(count)],
                    height=sampling.size[0],
                    width=sampling.size[1],
                    num_inference_steps=sampling.steps,
                    output_type="pt",
                    **drawing.arguments,
                ).images
                found.append(backbone.encode_image(pixels_B3HW * 2 - 1).cpu())
            self._class_latents[caption] = torch.cat(found)
        return self._class_latents[caption]

    @contextmanager
    def applied(self, path: Path) -> Iterator[None]:
        """The denoiser has the person's weights."""
        difference, metadata = read_tensors(path, what="DreamBooth file", key="out")
        if metadata.get("backbone_fingerprint") != self._backbone.fingerprint:
            raise UserError(
                f"{path} was trained on another base",
                expected=f"fingerprint {self._backbone.fingerprint[:12]}",
                got=metadata.get("backbone_fingerprint", "none")[:12],
                key="out",
            )
        denoiser = self._backbone.denoiser
        with _own_weights(denoiser), torch.no_grad():
            for name, parameter in denoiser.named_parameters():
                parameter.add_(difference[name].to(parameter.device, parameter.dtype))
            yield

    def texts(self, path: Path, prompts: Collection[str], *, class_noun: str) -> dict[str, TextEmbedding] | None:
        """The base's own."""
        return None


@contextmanager
def _own_weights(denoiser: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Lend the denoiser's weights for writing; afterwards every one is bit for bit what it was, and frozen.

    Yields:
        Copies of the weights as they were, by name.
    """
    before = {name: parameter.detach().clone() for name, parameter in denoiser.named_parameters()}
    try:
        yield before
    finally:
        with torch.no_grad():
            for name, parameter in denoiser.named_parameters():
                parameter.copy_(before[name])
                parameter.grad = None
        denoiser.requires_grad_(False)
