"""Flow matching: how noisy pictures are made, and what the network's answer is measured by.

x_t = (1 - t) x + t s eps with noise scale s; velocity v = s eps - x (rectified flow, arXiv 2209.03003, with our
t = 1 at the noise). The network may predict x or v; the loss is on v either way (JiT, arXiv 2511.13720).

Shape suffixes: B batch, c channels, H height, W width.
"""

from typing import Any

import torch
from torch import Tensor

from mezzotint.dit.config import Prediction
from mezzotint.training.config import ObjectiveConfig

_SMALLEST_SHARE = 1e-9
"""The normal distribution's ends are infinite."""


def draw_t(
    batch: int, config: ObjectiveConfig, generator: torch.Generator, quantiles: tuple[float, float] = (0.0, 1.0)
) -> Tensor:
    """Logit-normal noise times [B] in (0, 1), fp32 on the CPU (SD3, arXiv 2403.03206, section 3.1).

    quantiles: take only the times between these two quantiles, in their own proportions.
    """
    if quantiles == (0.0, 1.0):
        return torch.sigmoid(torch.randn(batch, generator=generator) * config.t_std + config.t_mean)
    low, high = quantiles
    share = low + (high - low) * torch.rand(batch, generator=generator, dtype=torch.float64)
    normal = torch.special.ndtri(share.clamp(_SMALLEST_SHARE, 1 - _SMALLEST_SHARE))
    return torch.sigmoid(normal * config.t_std + config.t_mean).float()


def add_noise(x_BcHW: Tensor, t_B: Tensor, noise_BcHW: Tensor) -> Tensor:
    """(1 - t) x + t noise; `noise` already has its scale."""
    t = t_B.view(-1, 1, 1, 1)
    return torch.lerp(x_BcHW, noise_BcHW, t)


def velocity_loss(
    prediction: Tensor, x_BcHW: Tensor, noise_BcHW: Tensor, t_B: Tensor, *, kind: Prediction, min_t: float
) -> Tensor:
    """Mean squared error of the velocity a picture [B], fp32.

    For kind "x" the velocity of a predicted picture is (x_t - prediction) / t with t clamped at min_t in the
    division, so its error is that of the picture over max(t, min_t) squared, and no noise is needed.
    """
    if kind == "v":
        return _mean_square(prediction, noise_BcHW - x_BcHW)
    return _mean_square(prediction, x_BcHW) / t_B.clamp(min=min_t).square()


def _mean_square(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean of squares of the difference a picture [B], fp32."""
    return _MeanSquare.apply(prediction, target)


class _MeanSquare(torch.autograd.Function):
    """Works picture by picture, so that a difference stays in the cache from its square to its gradient; over a
    whole batch of raw pixels the same arithmetic is four passes through memory, a tenth of a training step."""

    @staticmethod
    def forward(ctx: Any, prediction: Tensor, target: Tensor) -> Tensor:
        size = prediction[0].numel()
        means = torch.empty(len(prediction), dtype=torch.float32, device=prediction.device)
        gradient = torch.empty_like(prediction)
        for i in range(len(prediction)):
            difference = prediction[i].float() - target[i]
            means[i] = torch.linalg.vector_norm(difference).square() / size
            gradient[i] = difference.mul_(2 / size)
        ctx.save_for_backward(gradient)
        return means

    @staticmethod
    def backward(ctx: Any, upstream_B: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream_B.to(gradient.dtype).view(-1, *[1] * (gradient.ndim - 1)), None
