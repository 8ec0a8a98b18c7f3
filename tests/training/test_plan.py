"""The plan is what a step really needs; a way to save memory is chosen by it, and what does not fit is told before."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from allocations import allocated_peak
from tiny_models import make_tiny_flux
from training_runs import CAPTION, make_people, make_texts

from metalora.adapters.bank import AdapterBank
from metalora.adapters.inject import eject, inject
from metalora.adapters.optimizer import BankAdamW
from metalora.backbones.backbone import DiffusersBackbone
from metalora.backbones.flux import load_flux
from metalora.core.budget import GIB, RESERVE, MemoryPlan, settle, smaller
from metalora.core.contracts import Batch, MemoryUse, Sample, TextEmbedding
from metalora.core.errors import UserError
from metalora.core.footprint import LiveBytes
from metalora.people.datamodule import IdentityDataModule
from metalora.people.sampler import CohortSampler
from metalora.training.plan import Work, plan_step
from metalora.training.step import clip_gradients, diffusion_loss

Plans = Callable[[MemoryUse], MemoryPlan]
LATENTS = (4, 48, 40)
WAYS = [MemoryUse(checkpointing=which) for which in ("none", "some", "all")]


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two double and three single blocks of width 128."""
    folder = tmp_path_factory.mktemp("flux")
    make_tiny_flux(
        folder,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=32,
        num_attention_heads=4,
        axes_dims_rope=(8, 12, 12),
    )
    return folder


@pytest.fixture(scope="module")
def plans(flux: Path) -> Plans:
    """The plan of `work()` with any memory use, made once each."""
    return functools.cache(lambda memory: plan_step(opened(flux), work(), memory=memory))


def opened(folder: Path, **options: Any) -> DiffusersBackbone:
    return load_flux(folder, name="tiny", max_text_tokens=8, **options)


def work(**changes: Any) -> Work:
    values: dict[str, Any] = {
        "batch": 2,
        "identities": 3,
        "rank": 1,
        "meta_rank": 8,
        "train_meta_down": True,
        "latents_CHW": LATENTS,
        "text": make_texts()[CAPTION],
    }
    return Work(**(values | changes))


def batch_of(work: Work) -> Batch:
    draw = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(work.batch, *work.latents_CHW, generator=draw) for _ in range(2))
    rows = torch.zeros(work.batch, dtype=torch.long)
    return Batch(
        latents_BCHW=latents,
        noise_BCHW=noise,
        t_B=torch.full((work.batch,), 0.5),
        text=TextEmbedding(work.text.tokens_BLD[[0] * work.batch], work.text.pooled_BP[[0] * work.batch]),
        rows_B=torch.arange(work.batch) % work.identities,
        samples=tuple(Sample(str(k % work.identities), int(rows[k]), 0, False, 0, 0) for k in range(work.batch)),
        iteration=0,
    )


@pytest.mark.parametrize("train_meta_down", [True, False])
@pytest.mark.parametrize("memory", WAYS, ids=str)
def test_the_planned_activations_are_those_of_a_real_step(flux: Path, memory: MemoryUse, train_meta_down: bool) -> None:
    told, backbone = work(train_meta_down=train_meta_down), opened(flux, memory=memory)
    plan = plan_step(backbone, told, memory=memory)
    bank = AdapterBank(backbone.layer_shapes, identities=["0", "1", "2"], rank=1, meta_rank=8, seed=0)
    bank.train_meta_down = train_meta_down
    injection, batch = inject(backbone.denoiser, bank), batch_of(told)

    def step() -> None:
        bank.zero_grad()
        bank.clear_route()
        diffusion_loss(backbone, bank, batch, guidance=1.0).total.backward()
        clip_gradients(bank, max_norm=1.0)

    def step_and_forget() -> None:
        step()
        bank.zero_grad()
        bank.clear_route()

    measured = allocated_peak(step_and_forget)
    step()
    eject(injection)
    assert plan.activations == pytest.approx(measured, rel=0.15)
    assert plan.weights == sum(it.nbytes for it in [*backbone.denoiser.parameters(), *backbone.denoiser.buffers()])
    assert plan.adapter == sum(parameter.nbytes for parameter in bank.parameters())
    optimizer = BankAdamW(bank, lr=1e-3)
    optimizer.step()
    moments = [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    assert plan.moments == sum(value.nbytes for value in moments)


def test_checkpointing_and_fewer_bits_need_less(plans: Plans) -> None:
    none, some, every = (plans(memory).activations for memory in WAYS)
    assert every < 0.5 * none and every < some < none
    plain, eight, four = (plans(MemoryUse(bits)).weights for bits in (None, "float8", "nf4"))
    away = plans(MemoryUse(None, "all", True)).weights
    assert four < eight < 0.4 * plain and away < 0.5 * plain


def test_planning_reads_no_weights_and_leaves_the_backbone_alone(flux: Path) -> None:
    backbone = opened(flux)
    plan_step(backbone, work(), memory=WAYS[2])
    assert "denoiser" not in vars(backbone) and backbone.memory == MemoryUse() and backbone.device.type == "cpu"


def test_a_step_never_asks_the_device_for_a_number(flux: Path) -> None:
    """On the meta device there are no numbers: whoever waits for one fails. So a GPU is never waited for."""
    told = work(batch=3, identities=2)  # an identity twice in the batch
    backbone = opened(flux).on_paper(MemoryUse())
    with torch.device("meta"):
        bank = AdapterBank(backbone.layer_shapes, identities=["0", "1", "2"], rank=1, meta_rank=8, seed=0)
    optimizer = BankAdamW(bank, lr=1e-3)
    inject(backbone.denoiser, bank)
    data = IdentityDataModule(
        make_people(1),
        sampler=CohortSampler(make_people(1), batch_size=1, seed=0),
        texts=make_texts(),
        objective=backbone.objective,
        seed=0,
    )
    batch = data.transfer_batch_to_device(batch_of(told), torch.device("meta"), 0)
    with pytest.raises(RuntimeError, match="meta"):
        torch.zeros(1, device="meta").item()
    for train_meta_down in (False, True):
        bank.train_meta_down = train_meta_down
        for _ in range(2):
            diffusion_loss(backbone, bank, batch, guidance=1.0).total.backward()
            clip_gradients(bank, max_norm=1.0, parts=True)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    assert optimizer.state[bank.rows]["step"].tolist() == [4, 4, 0]


def fits(plan: MemoryPlan) -> int:
    return plan.peak + RESERVE


def test_the_fastest_way_that_fits_is_taken(flux: Path, plans: Plans) -> None:
    def settled(budget: int | None, *, checkpointing: str = "auto", offload: bool | str = "auto") -> MemoryUse:
        backbone = opened(flux)
        settle(backbone, plans, budget=budget, checkpointing=checkpointing, offload=offload, preset="24gb")
        return backbone.memory

    none, some, every = (fits(plans(memory)) for memory in WAYS)
    assert settled(None) == MemoryUse()
    assert settled(none) == MemoryUse()
    assert settled(none - 1) == settled(some) == MemoryUse(checkpointing="some")
    assert settled(some - 1) == settled(every) == MemoryUse(checkpointing="all")
    assert settled(every - 1) == settled(None, offload=True) == MemoryUse(checkpointing="all", offload=True)
    assert settled(none, checkpointing="all") == MemoryUse(checkpointing="all")


def test_what_does_not_fit_is_told_with_the_figures_and_the_next_smaller_preset(flux: Path, plans: Plans) -> None:
    def told(budget: float, preset: str, **options: Any) -> str:
        values = {"checkpointing": "auto", "offload": False, "preset": preset, **options}
        with pytest.raises(UserError) as error:
            settle(opened(flux), plans, budget=int(budget), **values)
        return str(error.value)

    line = told(RESERVE, "24gb")
    assert "does not fit" in line and "memory=16gb, or smaller resolutions or batches" in line
    assert "expected peak of" in line and "weights" in line and "all blocks checkpointed" in line
    assert line.endswith("key: memory")
    assert "memory=" not in told(RESERVE, "16gb").removesuffix("key: memory")
    assert "memory=24gb" in told(0, "48gb")
    assert smaller("auto", 24 * GIB).startswith("memory=24gb, or ")  # what is free may be less than the card's name
    assert "memory=" not in smaller("auto", 0)
    with pytest.raises(UserError, match=r"offloading needs every block checkpointed; .*key: memory.offload"):
        settle(opened(flux), plans, budget=GIB, checkpointing="some", offload=True, preset="24gb")
    for key, value in (("checkpointing", "most"), ("offload", "sometimes")):
        options: dict[str, Any] = {"checkpointing": "auto", "offload": "auto", key: value}
        with pytest.raises(UserError, match=rf"key: memory.{key}"):
            settle(opened(flux), plans, budget=None, preset="auto", **options)


def test_live_bytes_counts_what_is_alive() -> None:
    with LiveBytes() as live:
        a = torch.empty(1000, device="meta")
        b = a * 2
        view = b.view(10, 100)
        del b
        assert live.now == 8000
        del view
        assert live.now == 4000
        c = a.requires_grad_().exp()  # kept by its own backward
        loss = c.sum()
        del c
        assert live.now == 8000 + 4
        loss.backward()
        del loss
        assert live.now == 8000  # a and its gradient
    assert live.peak >= 12000
