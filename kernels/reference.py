"""Explicit dense attention in the inputs' own dtype: what every kernel is compared with, in float64 in the tests.

Shape suffixes: B batch, H query heads, G key/value heads, N query tokens, M key tokens, D head channels, V value
channels.
"""

import torch
from torch import Tensor


def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask_tokens: Tensor | None = None,
    *,
    scale: float | None = None,
    key_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(scale * q k^T + key_bias) v over the pairs that the mask keeps, and the log of the softmax's sum.

    A query without any key gives an output of 0, an lse of -inf and gradients of 0; plain softmax would give NaN. All
    inputs must be finite, masked ones too (0 * NaN is NaN), but for key_bias, which may be -inf.

    Args:
        q: [B, H, N, D]. k: [B, G, M, D]. v: [B, G, M, V]. G divides H: query head h reads head h // (H / G).
        mask_tokens: bool, broadcastable to [B, H, N, M], True where the key counts; None keeps every pair.
        scale: of the products; None is D ** -0.5.
        key_bias: [B or 1, H or 1, M], added to the scaled products.

    Returns:
        out [B, H, N, V] and lse [B, H, N] (natural log), both in q's dtype and differentiable.

    Raises:
        ValueError: H is no multiple of G.
    """
    heads, groups = q.shape[1], k.shape[1]
    if groups == 0 or heads % groups:
        raise ValueError(f"k has {groups} heads; expected a divisor of q's {heads}")
    k, v = (x.repeat_interleave(heads // groups, dim=1) for x in (k, v))
    scores = (q @ k.transpose(-1, -2)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if key_bias is not None:
        scores = scores + key_bias[..., None, :].to(scores.dtype)
    if mask_tokens is not None:
        scores = scores.masked_fill(~mask_tokens, -torch.inf)
    empty = (scores == -torch.inf).all(-1, keepdim=True)
    # The maximum only keeps exp in range, and cancels: as a constant it has no share in the gradient.
    top = scores.detach().amax(-1, keepdim=True).masked_fill(empty, 0.0)
    weights = (scores - top).exp()
    total = weights.sum(-1, keepdim=True).masked_fill(empty, 1.0)
    lse = (top + total.log()).masked_fill(empty, -torch.inf)
    return (weights / total) @ v, lse.squeeze(-1)
