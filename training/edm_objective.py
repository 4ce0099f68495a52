"""EDM's objective (Karras and others, arXiv 2206.00364, section 5), over the patches that were kept (MicroDiT, arXiv
2407.15811, section 2.2).

Shape suffixes: B batch, c channels, H rows, W columns of a latent, N patches, K kept patches, P values of a patch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mezzotint.dit.layers import patchify
from mezzotint.sampling.edm import SIGMA_DATA


@dataclass(frozen=True, kw_only=True, slots=True)
class EDMConfig:
    """sigma_data: deviation of the latents. ln sigma ~ Normal(log_mean, log_std): -0.6 and 1.2 at 256 pixels, 0 and
    0.6 at 512. Raises ValueError naming what is out of range."""

    sigma_data: float = SIGMA_DATA
    log_mean: float = -0.6
    log_std: float = 1.2

    def __post_init__(self) -> None:
        for name in ("sigma_data", "log_std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be more than 0.")


def draw_sigma(batch: int, config: EDMConfig, generator: torch.Generator) -> Tensor:
    """Noise levels [B], fp32 on the CPU."""
    return (torch.randn(batch, generator=generator) * config.log_std + config.log_mean).exp()


def edm_weight(sigma_B: Tensor, sigma_data: float) -> Tensor:
    """1 / c_out^2: it makes the network's own error count alike at each level."""
    return (sigma_B.square() + sigma_data**2) / (sigma_B * sigma_data).square()


def edm_loss(
    denoised: Tensor, clean_BcHW: Tensor, sigma_B: Tensor, *, patch_size: int, sigma_data: float,
    keep: Tensor | None = None,
) -> Tensor:
    """Weighted mean squared error a picture [B], fp32 (fp64 for fp64), over the kept patches.

    denoised: what `sampling.edm.denoise` gives, [B, c, H, W]. keep: int64 [B, K]; None is all patches.
    """
    error_BNP = patchify(denoised - clean_BcHW, patch_size)
    if keep is not None:
        error_BNP = error_BNP.gather(1, keep[..., None].expand(-1, -1, error_BNP.shape[2]))
    return edm_weight(sigma_B, sigma_data) * error_BNP.square().mean(dim=(1, 2))
