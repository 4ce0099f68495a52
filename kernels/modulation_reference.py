"""Norm, scale and shift in plain torch: what the other backends of `norm_modulate` are held against.

Shape suffixes: B batch, N tokens, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def reference_norm_modulate(x_BNC: Tensor, shift_BC: Tensor, scale_BC: Tensor, *, norm: str, eps: float) -> Tensor:
    """norm(x) * (1 + scale) + shift as torch's own operators compute it, in x's dtype; autograd differentiates it."""
    channels = (x_BNC.shape[-1],)
    normed = F.layer_norm(x_BNC, channels, eps=eps) if norm == "layer" else F.rms_norm(x_BNC, channels, eps=eps)
    return torch.addcmul(shift_BC[:, None], normed, 1 + scale_BC[:, None])


def forward(x: Tensor, shift: Tensor, scale: Tensor, norm: str, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Any device and floating dtype; arithmetic in fp64 for fp64, in fp32 for all else.

    x [B, N, C], shift and scale [B, C]. Returns out [B, N, C] in x's dtype, and mean (empty for the RMS norm) and
    1 / std [B, N] in the dtype of the arithmetic.
    """
    wide = statistics_dtype(x)
    centred = x.to(wide)
    mean = centred.new_empty(0)
    if norm == "layer":
        mean = centred.mean(-1)
        centred = centred - mean[..., None]
    rstd = (centred.square().mean(-1) + eps).rsqrt()
    out = centred * rstd[..., None] * (1 + scale.to(wide)[:, None]) + shift.to(wide)[:, None]
    return out.to(x.dtype), mean, rstd


def backward(
    d_out: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor, norm: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x [B, N, C] in its dtype, and of shift and scale [B, C] in scale's.

    With n = norm(x) and g = d_out * (1 + scale): dx = (g - mean(g) - n * mean(g * n)) / std, without mean(g) for the
    RMS norm; d_shift and d_scale are the sums over tokens of d_out and d_out * n.
    """
    wide = statistics_dtype(x)
    normed = (x.to(wide) - mean[..., None] if norm == "layer" else x.to(wide)) * rstd[..., None]
    d_out = d_out.to(wide)
    g = d_out * (1 + scale.to(wide)[:, None])
    dx = g - normed * (g * normed).mean(-1, keepdim=True)
    if norm == "layer":
        dx = dx - g.mean(-1, keepdim=True)
    dx = dx * rstd[..., None]
    d_shift, d_scale = d_out.sum(1), (d_out * normed).sum(1)
    return dx.to(x.dtype), d_shift.to(scale.dtype), d_scale.to(scale.dtype)


def statistics_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the arithmetic, and of mean and 1 / std."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
