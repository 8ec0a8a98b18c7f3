"""The stream of training batches, as Lightning wants it. Its whole state is one integer: batches consumed.

Shape legend: B batch, C latent channels, H W latent height and width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from lightning.pytorch import LightningDataModule

from metalora.core.contracts import Batch, Objective, Sample, TextEmbedding, TrainingPerson
from metalora.core.device import sent
from metalora.core.noise import noise, timestep
from metalora.people.sampler import Sampler

Part = Callable[[Sequence[Sample]], tuple[Sample, ...]]
"""Which of an iteration's samples are for this process."""


class BatchStream:
    """An endless, random-access stream of batches that Lightning can save and restore.

    Lightning fetches ahead, so what was handed out says nothing about what was trained on: `consumed` is told by the
    data module when a batch goes to the device, and it alone is the state.
    """

    def __init__(self, collate: "Collate", sampler: Sampler, *, part: Part = tuple) -> None:
        self._collate, self._sampler, self._part = collate, sampler, part
        self.consumed = 0

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the first one not yet consumed; the trainer's max_steps ends the run."""
        iteration = self.consumed
        while True:
            samples = self._sampler.samples(iteration)
            people = len({sample.identity for sample in samples})
            yield replace(self._collate(self._part(samples), iteration), people=people)
            iteration += 1

    def state_dict(self) -> dict[str, int]:
        """Batches consumed so far."""
        return {"batches": self.consumed}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on after `batches` batches."""
        self.consumed = state["batches"]


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


class IdentityDataModule(LightningDataModule):
    """Feeds Stage 1 or Stage 2, whichever the sampler is for. In-process: latents are cached, nothing waits for a disk.

    Args:
        people: identities with cached latents.
        sampler: which samples make up iteration i.
        texts: caption to its embedding, a single row.
        objective: says which times are drawn.
        seed: of noise and time.
        part: which samples of an iteration are for this process; all.
    """

    def __init__(
        self,
        people: Sequence[TrainingPerson],
        *,
        sampler: Sampler,
        texts: Mapping[str, TextEmbedding],
        objective: Objective,
        seed: int,
        part: Part = tuple,
    ) -> None:
        super().__init__()
        self.stream = BatchStream(Collate(people, texts=texts, objective=objective, seed=seed), sampler, part=part)

    def train_dataloader(self) -> BatchStream:
        """The stream, which Lightning saves and restores with the loop."""
        return self.stream

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch when the trainer consumes it; this is where it counts as consumed.

        The bank rows stay on the CPU: the host has to know them.
        """
        self.stream.consumed = batch.iteration + 1
        if device.type == "cpu":
            return batch
        return replace(
            batch,
            latents_BCHW=sent(batch.latents_BCHW, device),
            noise_BCHW=sent(batch.noise_BCHW, device),
            t_B=sent(batch.t_B, device),
            text=batch.text.to(device),
        )
