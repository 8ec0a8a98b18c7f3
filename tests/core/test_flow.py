"""The rectified-flow path and its loss."""

import torch

from metalora.core.flow import interpolate, per_sample_loss, velocity_target

LATENTS, NOISE = torch.randn(3, 2, 4, 5), torch.randn(3, 2, 4, 5)


def test_the_path_runs_from_latents_to_noise() -> None:
    assert torch.equal(interpolate(LATENTS, NOISE, torch.zeros(3)), LATENTS)
    assert torch.equal(interpolate(LATENTS, NOISE, torch.ones(3)), NOISE)


def test_each_sample_has_its_own_time() -> None:
    mixed = interpolate(LATENTS, NOISE, torch.tensor([0.0, 1.0, 0.25]))
    assert torch.equal(mixed[0], LATENTS[0]) and torch.equal(mixed[1], NOISE[1])
    torch.testing.assert_close(mixed[2], 0.75 * LATENTS[2] + 0.25 * NOISE[2])


def test_the_target_is_the_path_s_derivative() -> None:
    t, step = torch.full((3,), 0.4, dtype=torch.float64), 1e-3
    latents, noise = LATENTS.double(), NOISE.double()
    slope = (interpolate(latents, noise, t + step) - interpolate(latents, noise, t - step)) / (2 * step)
    torch.testing.assert_close(slope, velocity_target(latents, noise))


def test_the_loss_of_a_sample_ignores_its_batch_mates() -> None:
    loss = per_sample_loss(LATENTS, NOISE)
    assert loss.shape == (3,)
    for sample in range(3):
        alone = per_sample_loss(LATENTS[sample : sample + 1], NOISE[sample : sample + 1])
        torch.testing.assert_close(loss[sample : sample + 1], alone, rtol=1e-6, atol=0)
        torch.testing.assert_close(alone[0], torch.nn.functional.mse_loss(LATENTS[sample], NOISE[sample]))


def test_the_loss_is_taken_in_float32() -> None:
    half = LATENTS.bfloat16()
    assert per_sample_loss(half, half + 1).dtype == torch.float32
