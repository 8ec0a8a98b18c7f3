"""What drawing is planned to need is what it needs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from allocations import allocated_peak
from tiny_models import make_tiny_flux, make_tiny_sd

from metalora.backbones.backbone import DiffusersBackbone
from metalora.backbones.flux import load_flux
from metalora.backbones.unet import load_sd15
from metalora.core.contracts import MemoryUse
from metalora.inference.plan import plan_drawing


def opened_flux(folder: Path) -> DiffusersBackbone:
    make_tiny_flux(
        folder,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=8,
        axes_dims_rope=(8, 12, 12),
    )
    return load_flux(folder, name="tiny", max_text_tokens=8)


def opened_sd(folder: Path) -> DiffusersBackbone:
    make_tiny_sd(folder, xl=False)
    return load_sd15(folder, name="tiny")


@pytest.mark.parametrize("opened", [opened_flux, opened_sd])
def test_the_plan_is_the_larger_of_a_pass_and_a_decoding(
    tmp_path: Path, opened: Callable[[Path], DiffusersBackbone]
) -> None:
    backbone = opened(tmp_path)
    text = backbone.encode_text(["a photo of a man"])
    size = (96, 128)
    plan = plan_drawing(backbone, batch=2, rank=0, size=size, text=text, memory=MemoryUse())
    assert "denoiser" not in vars(backbone)
    pipe = backbone.pipeline(text=False)
    copies = 2 if backbone.needs_empty_prompt else 1
    factor = backbone.directory.vae_factor
    latents = torch.randn(2, 4, size[0] // factor, size[1] // factor)
    rows = text.rows(torch.zeros(2 * copies, dtype=torch.long))

    def one_pass() -> None:
        backbone.predict(latents.repeat(copies, 1, 1, 1), t_B=torch.full((2 * copies,), 0.5), text=rows, guidance=1.0)

    with torch.no_grad():
        measured = max(allocated_peak(one_pass), allocated_peak(lambda: pipe.vae.decode(latents)))
    # A convolution on the CPU makes a copy of its own, in another order; elsewhere its workspace is in the reserve.
    assert 0.8 * measured <= plan.activations <= 1.15 * measured
    assert plan.weights >= sum(parameter.nbytes for parameter in pipe.vae.parameters())
    more = plan_drawing(backbone, batch=4, rank=3, size=size, text=text, memory=MemoryUse())
    assert more.activations > 1.5 * plan.activations and more.adapter > 0 == plan.adapter
