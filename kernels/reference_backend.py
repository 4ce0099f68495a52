"""The explicit reference as a backend: any device and dtype, memory in N * M."""

import torch
from torch import Tensor

from mezzotint.kernels.layout import BlockLayout
from mezzotint.kernels.reference import reference_attention


def forward(
    q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, scale: float, key_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Output [B, H, N, V] in q's dtype and lse [B, H, N], fp32 (fp64 for fp64)."""
    with torch.no_grad():
        out, lse = reference_attention(q, k, v, layout.token_mask(), scale=scale, key_bias=key_bias)
    return out.contiguous(), lse.to(_wide(q)).contiguous()


def backward(
    d_out: Tensor, d_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    layout: BlockLayout, scale: float, key_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of q, k, v and key_bias, by autograd through the explicit computation."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v, key_bias) if x is not None]
    with torch.enable_grad():
        again, again_lse = reference_attention(
            *leaves[:3], layout.token_mask(), scale=scale, key_bias=leaves[3] if key_bias is not None else None
        )
        outputs, upstream = [again], [d_out]
        if d_lse is not None:
            outputs, upstream = [again, again_lse], [d_out, d_lse.to(again_lse.dtype)]
        gradients = torch.autograd.grad(outputs, leaves, upstream)
    dq, dk, dv, *d_bias = (g.contiguous() for g in gradients)
    return dq, dk, dv, d_bias[0] if d_bias else None


def _wide(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32
