"""Rectified flow: the straight path from image to noise, its velocity, and the loss on it (section 3.1).

Shape legend: B batch, C latent channels, H W latent height and width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RectifiedFlow:
    """The objective of FLUX and its kind; implements `metalora.core.contracts.Objective`.

    Args:
        mean, std: of the normal number whose sigmoid is the time.
    """

    mean: float = 0.0
    std: float = 1.0

    def time_of(self, normal: Tensor) -> Tensor:
        """Logit-normal time (Esser et al. 2024, section 3.1), in (0, 1)."""
        return torch.sigmoid(self.mean + self.std * normal)

    def noisy(self, latents_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """The point of the straight path at time t."""
        return interpolate(latents_BCHW, noise_BCHW, t_B)

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """The path's velocity; the same at every time."""
        return velocity_target(latents_BCHW, noise_BCHW)


def interpolate(latents_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
    """x_t = (1 - t) * latents + t * noise.

    Args:
        t_B: time in [0, 1], 1 = noise.
    """
    t_B111 = t_B.to(latents_BCHW.dtype).view(-1, 1, 1, 1)
    return (1 - t_B111) * latents_BCHW + t_B111 * noise_BCHW


def velocity_target(latents_BCHW: Tensor, noise_BCHW: Tensor) -> Tensor:
    """d x_t / dt = noise - latents, what the denoiser is trained to predict."""
    return noise_BCHW - latents_BCHW


def per_sample_loss(prediction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Mean squared error of each sample over its own C, H, W, in float32: [B].

    No mean over the batch: batch mates would then scale each other's gradients.
    """
    return (prediction_BCHW.float() - target_BCHW.float()).square().flatten(1).mean(1)
