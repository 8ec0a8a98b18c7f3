"""Discrete diffusion: the objective of Stable Diffusion 1.5 and SDXL (Ho et al. 2020; v: Salimans and Ho 2022).

Shape legend: B batch, C latent channels, H W latent height and width, T steps of the noise schedule.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class Diffusion:
    """Noise predicted at one of T steps; implements `metalora.core.contracts.Objective`.

    Time is k / T for step k: 0 is the least noise, (T - 1) / T the most.

    Args:
        alphas_cumprod_T: the share of the image's variance left at each step, falling.
        prediction: epsilon (the noise) or v_prediction.
    """

    alphas_cumprod_T: Tensor
    prediction: str = "epsilon"

    def time_of(self, normal: Tensor) -> Tensor:
        """Every step equally likely: the normal number's quantile says which."""
        steps = len(self.alphas_cumprod_T)
        return (torch.special.ndtr(normal.double()) * steps).floor().clamp(max=steps - 1).div(steps).float()

    def step_of(self, t_B: Tensor) -> Tensor:
        """The step k of every time, as the U-Net counts them: int64 [B]."""
        return (t_B.double() * len(self.alphas_cumprod_T)).round().long()

    def noisy(self, latents_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """sqrt(a_k) * latents + sqrt(1 - a_k) * noise (eq. 4 of Ho et al.)."""
        signal_B111, noise_B111 = self._shares(t_B, like=latents_BCHW)
        return signal_B111 * latents_BCHW + noise_B111 * noise_BCHW

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """What the U-Net is to predict: the noise, or v = sqrt(a_k) * noise - sqrt(1 - a_k) * latents."""
        if self.prediction == "epsilon":
            return noise_BCHW
        signal_B111, noise_B111 = self._shares(t_B, like=latents_BCHW)
        return signal_B111 * noise_BCHW - noise_B111 * latents_BCHW

    def _shares(self, t_B: Tensor, *, like: Tensor) -> tuple[Tensor, Tensor]:
        a_B111 = self.alphas_cumprod_T.to(t_B.device)[self.step_of(t_B)].to(like.dtype).view(-1, 1, 1, 1)
        return a_B111.sqrt(), (1 - a_B111).sqrt()
