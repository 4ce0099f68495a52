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
    """Gradients of q, k, v and key_bias, term by term (FlashAttention-2, arXiv 2307.08691, section 2.1).

    Inside an operation autograd records nothing, so the chain rule is written out.
    """
    group, wide = q.shape[1] // k.shape[1], _wide(q)
    queries, upstream = q.to(wide), d_out.to(wide)
    keys, values = (x.to(wide).repeat_interleave(group, dim=1) for x in (k, v))
    weights = _weights(queries @ keys.transpose(-1, -2) * scale, lse, layout, key_bias)
    delta = (upstream * out.to(wide)).sum(-1) - (0 if d_lse is None else d_lse)
    d_scores = weights * (upstream @ values.transpose(-1, -2) - delta[..., None])
    dq = d_scores @ keys * scale
    dk = d_scores.transpose(-1, -2) @ queries * scale
    dv = weights.transpose(-1, -2) @ upstream
    d_bias = None if key_bias is None else d_scores.sum(-2).sum_to_size(key_bias.shape).contiguous()
    return dq.to(q.dtype), _by_group(dk, k), _by_group(dv, v), d_bias


def _weights(scores: Tensor, lse: Tensor, layout: BlockLayout, key_bias: Tensor | None) -> Tensor:
    if key_bias is not None:
        scores = scores + key_bias[:, :, None, :]
    kept = layout.token_mask() & (lse != -torch.inf)[..., None]
    return torch.where(kept, (scores - torch.where(lse == -torch.inf, 0.0, lse)[..., None]).exp(), 0.0)


def _by_group(gradient: Tensor, x: Tensor) -> Tensor:
    """Summed over the query heads that share a key head."""
    return gradient.unflatten(1, (x.shape[1], -1)).sum(2).to(x.dtype)


def _wide(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32
