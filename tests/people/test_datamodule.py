"""The stream's state is one integer, and a batch is a pure function of it."""

import itertools

import pytest
import torch

from metalora.core.contracts import Batch, TextEmbedding, TrainingImage, TrainingPerson
from metalora.core.flow import RectifiedFlow
from metalora.core.noise import noise, timestep
from metalora.people.datamodule import IdentityDataModule
from metalora.people.sampler import CohortSampler

TEXTS = {
    word: TextEmbedding(torch.full((1, 3, 4), float(k)), torch.full((1, 5), float(k))) for k, word in enumerate("ab")
}


def people() -> list[TrainingPerson]:
    draw = torch.Generator().manual_seed(0)
    return [
        TrainingPerson(
            f"p{k}",
            "ab"[k % 2],
            tuple(
                TrainingImage(torch.randn(2, 2, *shape, generator=draw), shape, "") for shape in [(4, 4), (2, 6)] * 2
            ),
        )
        for k in range(3)
    ]


def module(batch_size: int = 2) -> IdentityDataModule:
    sampler = CohortSampler(people(), batch_size=batch_size, seed=5)
    return IdentityDataModule(people(), sampler=sampler, texts=TEXTS, objective=RectifiedFlow(), seed=5)


def take(stream: object, count: int) -> list[Batch]:
    return list(itertools.islice(iter(stream), count))  # type: ignore[call-overload]


def same(one: Batch, other: Batch) -> bool:
    names = ("latents_BCHW", "noise_BCHW", "t_B", "rows_B")
    return one.samples == other.samples and all(torch.equal(getattr(one, n), getattr(other, n)) for n in names)


def test_a_batch_holds_the_cached_latents_the_keyed_noise_and_the_persons_caption() -> None:
    cast = people()
    for batch in take(module().stream, 6):
        for k, sample in enumerate(batch.samples):
            image = cast[sample.row].images[sample.image]
            assert torch.equal(batch.latents_BCHW[k], image.latents_2CHW[int(sample.flip)])
            key = {
                "seed": 5,
                "identity": sample.identity,
                "iteration": batch.iteration,
                "occurrence": sample.occurrence,
            }
            assert torch.equal(batch.noise_BCHW[k], noise(image.latents_2CHW.shape[1:], **key))
            assert batch.t_B[k] == timestep(**key)
            assert batch.text.tokens_BLD[k, 0, 0] == "ab".index(cast[sample.row].caption)
            assert batch.text.pooled_BP[k, 0] == "ab".index(cast[sample.row].caption)
            assert batch.rows_B[k] == sample.row


def test_what_was_fetched_but_not_consumed_is_not_in_the_state() -> None:
    data = module()
    batches = take(data.stream, 4)
    assert data.stream.state_dict() == {"batches": 0}
    for batch in batches[:2]:
        data.transfer_batch_to_device(batch, torch.device("cpu"), 0)
    assert data.stream.state_dict() == {"batches": 2}


@pytest.mark.parametrize("at", [0, 1, 3])
def test_the_stream_goes_on_where_it_was(at: int) -> None:
    uncut = take(module().stream, 5)
    resumed = module().stream
    resumed.load_state_dict({"batches": at})
    assert all(same(one, other) for one, other in zip(take(resumed, 5 - at), uncut[at:], strict=True))


def test_moving_a_batch_moves_every_tensor() -> None:
    data = module()
    (batch,) = take(data.stream, 1)
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    tensors = [
        moved.latents_BCHW,
        moved.noise_BCHW,
        moved.t_B,
        moved.text.tokens_BLD,
        moved.text.pooled_BP,
    ]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.rows_B.device.type == "cpu"  # the host has to know them
    assert moved.samples == batch.samples and moved.iteration == batch.iteration
