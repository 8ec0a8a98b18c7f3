"""Textual inversion (Gal et al. 2023): nothing of the base is trained but the embedding of one new word per person.

FLUX has two text encoders; the word gets an embedding in each, and both start at the class noun's. People train side
by side in one batch: their words do not meet.

Shape legend: B batch, K people, D text width.
"""

import copy
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metalora.adapters.artifacts import read_tensors, write_tensors
from metalora.core.contracts import TextEmbedding
from metalora.core.errors import UserError
from metalora.core.flow import per_sample_loss
from metalora.evaluation.rivals.rival import Progress, Sitter, file_of, missing
from metalora.people.collate import Collate
from metalora.people.sampler import CohortSampler, group_cohorts

if TYPE_CHECKING:
    from metalora.backbones.backbone import DiffusersBackbone

FORMAT = "metalora-textual-inversion-1"
_ENCODERS = {"clip_l": ("tokenizer", "text_encoder"), "t5": ("tokenizer_2", "text_encoder_2")}
"""Name in the file: tokenizer and encoder in the pipeline."""


@dataclass(frozen=True)
class TextualInversionRecipe:
    """How the words are trained."""

    learning_rate: float
    iterations: int
    crops: bool = False
    """App. D's crops and flips, as lora_aug has them; else the whole photo."""
    cohort_size: int = 16
    weight_decay: float = 0.0
    guidance: float = 1.0


class Words:
    """Copies of a pipeline's tokenizers and text encoders that know new words; the originals stay as they are.

    Args:
        words: how many.
        noun: whose embedding they start at.

    Raises:
        UserError: the backbone has not FLUX's two text encoders.
    """

    def __init__(self, backbone: "DiffusersBackbone", *, words: int, noun: str) -> None:
        if (
            backbone.family.component != "transformer"
            or getattr(backbone.family.pipeline, "__name__", "") != "FluxPipeline"
        ):
            raise UserError(
                "textual inversion is here for FLUX alone",
                expected="backbone=mini or flux_dev",
                got=backbone.name,
                key="backbone",
            )
        self._backbone, self._pipe = backbone, backbone.pipeline(text=True)
        self.names = [f"<person{number}>" for number in range(words)]
        self.rows: dict[str, nn.Parameter] = {}
        for name, (tokenizer_name, encoder_name) in _ENCODERS.items():
            tokenizer = copy.deepcopy(getattr(self._pipe, tokenizer_name))
            encoder = copy.deepcopy(getattr(self._pipe, encoder_name)).requires_grad_(False)
            first = len(tokenizer)
            tokenizer.add_tokens(self.names)
            _end_at(encoder, tokenizer.eos_token_id)
            embedding = _embedding(encoder)
            start_D = embedding.weight[_ids(tokenizer, noun)].detach().float().mean(0)
            self.rows[name] = nn.Parameter(start_D.repeat(words, 1))
            _know(embedding, self.rows[name], first=first)
            setattr(self._pipe, tokenizer_name, tokenizer)
            setattr(self._pipe, encoder_name, encoder)

    def embed(self, captions: Sequence[str]) -> TextEmbedding:
        """Embed captions that may hold new words; differentiable in `rows`."""
        backbone = self._backbone
        return backbone.family.embed(self._pipe, list(captions), max_text_tokens=backbone.max_text_tokens)


def with_word(prompt: str, *, noun: str, word: str) -> str:
    """The prompt with the new word in the class noun's place.

    Raises:
        UserError: the noun is not in the prompt.
    """
    found, count = re.subn(rf"\b{re.escape(noun)}\b", word, prompt, count=1)
    if not count:
        raise UserError("the prompt does not name the class", expected=f"the word {noun}", got=prompt, key="prompt")
    return found


class TextualInversion:
    """A new word per person; implements `Rival`."""

    def __init__(
        self,
        backbone: "DiffusersBackbone",
        *,
        recipe: TextualInversionRecipe,
        texts: Mapping[str, TextEmbedding],
        seed: int,
    ) -> None:
        self._backbone, self._recipe, self._texts, self._seed = backbone, recipe, texts, seed
        self.name = "textual_inversion_aug" if recipe.crops else "textual_inversion"
        self.iterations, self.crops = recipe.iterations, recipe.crops

    def settings(self) -> Mapping[str, Any]:
        """The recipe; the size of the cohort changes no more than the last bits."""
        return {name: value for name, value in asdict(self._recipe).items() if name != "cohort_size"}

    def learn(self, sitters: Sequence[Sitter], *, out: Path, progress: Progress) -> None:
        """Train the words of a cohort at a time; who has a file is not trained again."""
        todo = {sitter.identity: sitter for sitter in missing(sitters, out=out)}
        done = len(sitters) - len(todo)
        for noun in sorted({sitter.class_noun for sitter in todo.values()}):
            people = [s.training for s in todo.values() if s.class_noun == noun and s.training is not None]
            for cohort in group_cohorts(people, size=self._recipe.cohort_size):
                rows = self._train(cohort, noun=noun)
                for number, person in enumerate(cohort):
                    header = {"format": FORMAT, "identity": person.identity, "backbone": self._backbone.name}
                    header |= {"text_fingerprint": self._backbone.text_fingerprint, "iterations": str(self.iterations)}
                    tensors = {name: rows_KD[number : number + 1].clone() for name, rows_KD in rows.items()}
                    write_tensors(file_of(out, person.identity), tensors, metadata=header)
                done += len(cohort)
                progress(done, len(sitters))

    def _train(self, cohort: Sequence[Any], *, noun: str) -> dict[str, Tensor]:
        """The trained embeddings [K, D] of each encoder."""
        backbone, recipe = self._backbone, self._recipe
        words = Words(backbone, words=len(cohort), noun=noun)
        sampler = CohortSampler(cohort, batch_size=1, seed=self._seed, flips=recipe.crops)
        collate = Collate(cohort, texts=self._texts, objective=backbone.objective, seed=self._seed)
        captions = [
            with_word(person.caption, noun=noun, word=word) for person, word in zip(cohort, words.names, strict=True)
        ]
        optimizer = torch.optim.AdamW(words.rows.values(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        for iteration in range(recipe.iterations):
            batch = collate(sampler.samples(iteration), iteration)
            device = backbone.device
            given = (batch.latents_BCHW.to(device), batch.noise_BCHW.to(device), batch.t_B.to(device))
            text = words.embed(captions).rows(batch.rows_B.to(device))
            predicted_BCHW = backbone.predict(
                backbone.objective.noisy(*given), t_B=given[2], text=text, guidance=recipe.guidance
            )
            optimizer.zero_grad(set_to_none=True)
            # a sum: everyone's gradient is that of training alone
            per_sample_loss(predicted_BCHW, backbone.objective.target(*given)).sum().backward()
            optimizer.step()
        found = {name: rows_KD.detach().cpu() for name, rows_KD in words.rows.items()}
        if not all(bool(value.isfinite().all()) for value in found.values()):
            raise UserError(
                "textual inversion diverged",
                expected="a smaller learning rate",
                got=f"{recipe.learning_rate:g}",
                key="textual_inversion.learning_rate",
            )
        return found

    @contextmanager
    def applied(self, path: Path) -> Iterator[None]:
        """The denoiser is the base's."""
        yield

    @torch.no_grad()
    def texts(self, path: Path, prompts: Collection[str], *, class_noun: str) -> dict[str, TextEmbedding] | None:
        """The prompts with the person's word for the class noun.

        Raises:
            UserError: a file of other text encoders, a prompt without the class noun.
        """
        tensors, metadata = read_tensors(path, what="learned word", key="out")
        if metadata.get("text_fingerprint") != self._backbone.text_fingerprint:
            raise UserError(
                f"{path} was trained with other text encoders",
                expected=f"fingerprint {self._backbone.text_fingerprint[:12]}",
                got=metadata.get("text_fingerprint", "none")[:12],
                key="out",
            )
        words = Words(self._backbone, words=1, noun=class_noun)
        for name, rows_KD in words.rows.items():
            rows_KD.copy_(tensors[name])
        # one by one, as the base's prompts are embedded: no other prompt of a run can change an embedding's last bits
        return {prompt: words.embed([with_word(prompt, noun=class_noun, word=words.names[0])]) for prompt in prompts}


def _embedding(encoder: nn.Module) -> nn.Embedding:
    """The embedding that an encoder's forward pass looks words up in."""
    stack = getattr(encoder, "encoder", None)
    found = getattr(stack, "embed_tokens", None) or encoder.get_input_embeddings()  # type: ignore[operator]
    assert isinstance(found, nn.Embedding)
    return found


def _end_at(encoder: nn.Module, eos: int) -> None:
    """Let CLIP pool at the end of the text: with the `eos_token_id` of 2 that older configurations have it takes the
    highest id for the end, and a new word's is higher."""
    for module in encoder.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = eos  # type: ignore[assignment]


def _ids(tokenizer: Any, word: str) -> list[int]:
    return tokenizer(word, add_special_tokens=False).input_ids


def _know(embedding: nn.Embedding, rows_KD: Tensor, *, first: int) -> None:
    """Let an embedding look up ids from `first` on in `rows_KD`; its own table keeps its size."""
    new: list[Tensor] = []

    def before(module: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
        new.append(given[0] - first)
        return (torch.where(given[0] < first, given[0], 0),)

    def after(module: nn.Module, given: tuple[Tensor], made: Tensor) -> Tensor:
        place = new.pop()
        own = rows_KD[place.clamp_min(0)].to(made.dtype)
        return torch.where((place >= 0)[..., None], own, made)

    embedding.register_forward_pre_hook(before)
    embedding.register_forward_hook(after)
