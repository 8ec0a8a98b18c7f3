"""The stream of training batches, as Lightning wants it. Its whole state is one integer: batches consumed.

Shape legend: B batch, C latent channels, H W latent height and width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from lightning.pytorch import LightningDataModule

from metalora.core.contracts import Batch, Objective, Sample, TextEmbedding, TrainingPerson
from metalora.core.device import sent
from metalora.people.collate import Collate
from metalora.people.sampler import Sampler

Part = Callable[[Sequence[Sample]], tuple[Sample, ...]]
"""Which of an iteration's samples are for this process."""


class BatchStream:
    """An endless, random-access stream of batches that Lightning can save and restore.

    Lightning fetches ahead, so what was handed out says nothing about what was trained on: `consumed` is told by the
    data module when a batch goes to the device, and it alone is the state.
    """

    def __init__(self, collate: Collate, sampler: Sampler, *, part: Part = tuple) -> None:
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
