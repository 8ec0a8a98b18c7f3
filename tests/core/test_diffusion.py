"""The objective of the U-Nets is diffusers' own: its noise, its velocity, its steps."""

import pytest
import torch
from diffusers import DDIMScheduler

from metalora.core.diffusion import Diffusion

LATENTS = torch.randn(4, 2, 3, 5, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(4, 2, 3, 5, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def scheduler() -> DDIMScheduler:
    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


@pytest.mark.parametrize("steps", [[0, 1, 500, 999]])
def test_noise_and_velocity_are_the_scheduler_s(scheduler: DDIMScheduler, steps: list[int]) -> None:
    step_B = torch.tensor(steps)
    t_B = step_B / 1000
    epsilon = Diffusion(scheduler.alphas_cumprod)
    assert torch.equal(epsilon.step_of(t_B), step_B)
    torch.testing.assert_close(epsilon.noisy(LATENTS, NOISE, t_B), scheduler.add_noise(LATENTS, NOISE, step_B))
    assert epsilon.target(LATENTS, NOISE, t_B) is NOISE
    velocity = Diffusion(scheduler.alphas_cumprod, "v_prediction").target(LATENTS, NOISE, t_B)
    torch.testing.assert_close(velocity, scheduler.get_velocity(LATENTS, NOISE, step_B))


def test_every_step_is_a_time_and_comes_back(scheduler: DDIMScheduler) -> None:
    objective = Diffusion(scheduler.alphas_cumprod)
    normal = torch.special.ndtri((torch.arange(1000) + 0.5).double() / 1000).float()
    steps = torch.stack([objective.step_of(objective.time_of(n)) for n in normal])
    assert torch.equal(steps.flatten(), torch.arange(1000))


def test_times_are_uniform_and_stay_in_range(scheduler: DDIMScheduler) -> None:
    objective = Diffusion(scheduler.alphas_cumprod)
    drawn = objective.time_of(torch.randn(20000, generator=torch.Generator().manual_seed(0)))
    counts = torch.histc(drawn, bins=10, min=0, max=1)
    assert counts.min() > 1800 and counts.max() < 2200
    extremes = objective.step_of(objective.time_of(torch.tensor([-30.0, 30.0])))
    assert extremes.tolist() == [0, 999]
