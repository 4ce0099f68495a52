"""Denoising and drawing as EDM does (Karras and others, arXiv 2206.00364), with diffusers' preconditioning and noise
levels and the paper's second-order sampler, which diffusers does not have for them.

Noise levels are standard deviations of the noise, sigma. Shape suffixes: B batch, c channels, H rows, W columns.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from diffusers import EDMEulerScheduler
from torch import Tensor, nn

SIGMA_DATA = 0.9
"""Deviation of scaled latents that MicroDiT takes (arXiv 2407.15811)."""

Denoise = Callable[[Tensor, float], Tensor]
"""(noisy latents, their noise level) to clean latents."""


def edm_scheduler(sigma_data: float = SIGMA_DATA) -> EDMEulerScheduler:
    """sigma from 80 to 0.002 with rho 7, and the network's answer as EDM scales it."""
    return EDMEulerScheduler(sigma_data=sigma_data, prediction_type="epsilon")


def denoise(
    network: Callable[..., Tensor], scheduler: EDMEulerScheduler, x_BcHW: Tensor, sigma_B: Tensor, text: Tensor,
    **arguments: Any,
) -> Tensor:
    """Clean latents [B, c, H, W] from noisy ones: c_skip x + c_out F(c_in x, ln(sigma) / 4, text).

    network: F, such as a MicroDiT. sigma: [B], over 0. arguments: go to the network (keep, guidance_scale, ...).
    """
    sigma = sigma_B.view(-1, 1, 1, 1)
    answer = network(
        scheduler.precondition_inputs(x_BcHW, sigma), scheduler.precondition_noise(sigma_B), text, **arguments
    )
    return scheduler.precondition_outputs(x_BcHW, answer.to(x_BcHW.dtype), sigma)


@torch.no_grad()
def draw_latents(
    network: nn.Module, text: Tensor, noise_BcHW: Tensor, *, num_inference_steps: int = 30,
    guidance_scale: float | None = 5.0, scheduler: EDMEulerScheduler | None = None,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Latents [B, c, H, W] for encoded text: num_inference_steps levels of noise, two passes for all but the last.

    text: as the network takes it. noise: of unit deviation, fp32 (or fp64 for a network in fp64).
    guidance_scale: None draws from the text alone.
    callback: told the number of each finished step, from 0, and the latents behind it.
    """
    scheduler = scheduler or edm_scheduler()
    scheduler.set_timesteps(num_inference_steps)
    arguments = {} if guidance_scale is None else {"guidance_scale": guidance_scale}

    def clean(x: Tensor, sigma: float) -> Tensor:
        levels = torch.full((len(x),), sigma, dtype=noise_BcHW.dtype, device=x.device)
        return denoise(network, scheduler, x.to(noise_BcHW.dtype), levels, text, **arguments).to(x.dtype)

    # In fp64, since at sigma 80 fp32 leaves only four digits of the latents.
    start = noise_BcHW.double() * scheduler.config.sigma_max
    return heun(clean, start, scheduler.sigmas.tolist(), callback).to(noise_BcHW.dtype)


def heun(
    clean: Denoise, x_BcHW: Tensor, sigmas: list[float], callback: Callable[[int, Tensor], None] | None = None
) -> Tensor:
    """Heun's method along falling noise levels (algorithm 1 of the paper, without added noise).

    x: latents with noise of the first level. sigmas: the last may be 0, and is reached by an Euler step.
    """
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        slope = (x_BcHW - clean(x_BcHW, sigma)) / sigma
        ahead = x_BcHW + (following - sigma) * slope
        if following > 0:
            slope_there = (ahead - clean(ahead, following)) / following
            ahead = x_BcHW + (following - sigma) * (slope + slope_there) / 2
        x_BcHW = ahead
        if callback is not None:
            callback(step, x_BcHW)
    return x_BcHW
