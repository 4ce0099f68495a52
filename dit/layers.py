"""The small parts of a block: norm, modulation, feed-forward, patches, and embeddings of time and text.

Shape suffixes: B batch, N tokens, C hidden size, P patch values.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mezzotint.dit.block_shape import BlockShape
from mezzotint.dit.config import DiTConfig
from mezzotint.kernels import norm_modulate

NORM_EPS = 1e-6


def make_norm(config: BlockShape) -> nn.Module:
    """A norm without weights, where no modulation follows."""
    if config.norm == "rms":
        return nn.RMSNorm(config.hidden_size, eps=NORM_EPS, elementwise_affine=False)
    return nn.LayerNorm(config.hidden_size, eps=NORM_EPS, elementwise_affine=False)


class ModulatedNorm(nn.Module):
    """norm(x) * (1 + scale) + shift, one scale and shift a picture (adaLN, DiT section 3.2), as one kernel."""

    def __init__(self, config: BlockShape, eps: float = NORM_EPS) -> None:
        super().__init__()
        self.kind, self.eps = config.norm, eps

    def forward(self, x_BNC: Tensor, shift_BC: Tensor, scale_BC: Tensor) -> Tensor:
        return norm_modulate(x_BNC, shift_BC, scale_BC, norm=self.kind, eps=self.eps)


class GeluMlp(nn.Module):
    """Linear, tanh-GELU, Linear."""

    def __init__(self, config: BlockShape) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.mlp_size)
        self.fc2 = nn.Linear(config.mlp_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class SwigluMlp(nn.Module):
    """fc2(silu(gate(x)) * fc1(x)) (Shazeer, arXiv 2002.05202)."""

    def __init__(self, hidden_size: int, mlp_size: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, mlp_size, bias=False)
        self.fc1 = nn.Linear(hidden_size, mlp_size, bias=False)
        self.fc2 = nn.Linear(mlp_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.silu(self.gate(x)) * self.fc1(x))


def make_mlp(config: BlockShape) -> GeluMlp | SwigluMlp:
    """The feed-forward half of a block, as the config names it."""
    return SwigluMlp(config.hidden_size, config.mlp_size) if config.mlp == "swiglu" else GeluMlp(config)


class PatchEmbed(nn.Module):
    """Flat patches to tokens, through a bottleneck when the config has one."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        values, bottleneck = config.patch_values, config.patch_bottleneck
        self.down = nn.Linear(values, bottleneck, bias=False) if bottleneck else nn.Identity()
        self.up = nn.Linear(bottleneck or values, config.hidden_size)

    def forward(self, patches_BNP: Tensor, scale_B: Tensor) -> Tensor:
        """Scaled patches to tokens; the scale is applied behind the bottleneck, where values are few."""
        return self.up(self.down(patches_BNP) * scale_B[:, None, None])


def patchify(x: Tensor, patch_size: int) -> Tensor:
    """Pictures [B, c, H, W] to flat patches [B, N, p * p * c], row by row."""
    B, c, H, W = x.shape
    p = patch_size
    x = x.reshape(B, c, H // p, p, W // p, p)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(B, (H // p) * (W // p), p * p * c)


def unpatchify(patches_BNP: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """Undo `patchify`."""
    rows, columns = grid
    p = patch_size
    x = patches_BNP.reshape(patches_BNP.shape[0], rows, columns, p, p, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(x.shape[0], x.shape[-1], rows * p, columns * p)


def sinusoid(
    t_B: Tensor, size: int = 256, scale: float = 1000.0, max_period: float = 10_000.0, shift: int = 0
) -> Tensor:
    """Sines and cosines of noise time t in [0, 1], fp32 [B, size] (DiT's timestep embedding at t * 1000).

    shift: taken from the count of frequencies in the exponent, so that 1 makes the last one 1 / max_period.
    """
    places = torch.arange(size // 2, device=t_B.device)
    frequencies = torch.exp(-math.log(max_period) * places / (size // 2 - shift))
    angles = t_B.float()[:, None] * scale * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class VectorEmbed(nn.Module):
    """A vector a picture (a time or a pooled text) to the hidden size: Linear, SiLU, Linear."""

    def __init__(self, in_size: int, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_size, hidden_size)
        self.fc2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.silu(self.fc1(x)))
