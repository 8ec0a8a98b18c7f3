"""From samples to a Batch, without Lightning: its data module feeds a trainer, rivals train on batches as they are."""

from collections.abc import Mapping, Sequence

import torch

from metalora.core.contracts import Batch, Objective, Sample, TextEmbedding, TrainingPerson
from metalora.core.noise import noise, timestep


class Collate:
    """Turns samples into a Batch: cached latents stacked, noise and time drawn, captions looked up.

    Args:
        people: whose images the samples name.
        texts: one embedded caption each, a single row.
        objective: says which times are drawn.
        seed: of noise and time.
    """

    def __init__(
        self,
        people: Sequence[TrainingPerson],
        *,
        texts: Mapping[str, TextEmbedding],
        objective: Objective,
        seed: int,
    ) -> None:
        self._people = {person.identity: person for person in people}
        captions = sorted({person.caption for person in people})
        self._caption_row = {person.identity: captions.index(person.caption) for person in people}
        self._text = TextEmbedding(
            torch.cat([texts[caption].tokens_BLD.cpu() for caption in captions]),
            torch.cat([texts[caption].pooled_BP.cpu() for caption in captions]),
        )
        self._objective, self._seed = objective, seed

    def __call__(self, samples: Sequence[Sample], iteration: int) -> Batch:
        """The batch of `samples`, on the CPU; of none, with tensors of no numbers."""
        latents_BCHW = _stack(
            [self._people[sample.identity].images[sample.image].latents_2CHW[int(sample.flip)] for sample in samples]
        )
        keys = [
            {
                "seed": self._seed,
                "identity": sample.identity,
                "iteration": sample.iteration,
                "occurrence": sample.occurrence,
            }
            for sample in samples
        ]
        return Batch(
            latents_BCHW=latents_BCHW,
            noise_BCHW=_stack([noise(latents_BCHW.shape[1:], **key) for key in keys]),
            t_B=_stack([timestep(**key, time_of=self._objective.time_of) for key in keys]),
            text=self._text.rows(
                torch.tensor([self._caption_row[sample.identity] for sample in samples], dtype=torch.int64)
            ),
            rows_B=torch.tensor([sample.row for sample in samples], dtype=torch.int64),
            samples=tuple(samples),
            iteration=iteration,
        )


def _stack(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(tensors)) if tensors else torch.empty(0)
