"""torch's own attention on a CPU as a backend, for layouts that keep every pair of tokens."""

import torch
from torch import Tensor

from mezzotint.kernels.layout import BlockLayout


def forward(
    q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, scale: float, key_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Output [B, H, N, V] and lse fp32 [B, H, N]."""
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, *_for_each(q, k, v), scale=scale)
    return out.contiguous(), lse.float().contiguous()


def backward(
    d_out: Tensor, d_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    layout: BlockLayout, scale: float, key_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, None]:
    """Gradients of q, k and v. Raises ValueError with d_lse: torch's kernel has no gradient through lse."""
    keys, values = _for_each(q, k, v)
    if d_lse is not None:
        raise ValueError("d_lse is given; the sdpa backend has no gradient through lse, so take backend='cpu'.")
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        d_out.contiguous(), q, keys, values, out, lse, 0.0, False, scale=scale
    )
    return dq, _summed(dk, k), _summed(dv, v), None


def _for_each(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values repeated for each query head of their group."""
    group = q.shape[1] // k.shape[1]
    if group == 1:
        return k, v
    return k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)


def _summed(gradient: Tensor, x: Tensor) -> Tensor:
    if gradient.shape == x.shape:
        return gradient
    return gradient.unflatten(1, (x.shape[1], -1)).sum(dim=2)
