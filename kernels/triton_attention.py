"""The Triton backend of block-sparse attention: what it refuses, and the passes on the device of the tensors.

Shape suffixes: B batch, H query heads, G key heads, N query tokens, M key tokens, D head channels, V value channels.
"""

import importlib.util

import torch
from torch import Tensor

from mezzotint.kernels.attention_check import check_arguments
from mezzotint.kernels.layout import BlockLayout
from mezzotint.kernels.triton_configs import check_head_dims
from mezzotint.kernels.triton_launch import backward_arguments, launch_dkdv, launch_dq, launch_forward
from mezzotint.kernels.triton_tuning import interpreting

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def forward(
    q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, scale: float, key_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attention over the layout's blocks.

    Args:
        q, k, v: [B, H, N, D], [B, G, M, D], [B, G, M, V]; fp16, bf16 or fp32; any strides, the last dimension dense.
            Tensors that do not start or step by 16 bytes are copied first.
        layout: on the same device, its sizes those of q and k.
        scale: what q.k is multiplied by.
        key_bias: fp32 [B or 1, H or 1, M], added to scale * q.k; or None.

    Returns:
        out [B, H, N, V] in q's dtype and lse fp32 [B, H, N] (natural log), dense; rows without a key 0 and -inf.

    Raises:
        ValueError: Triton missing, not a GPU from sm_80 on, dtypes, head dims or strides that the kernels cannot take.
    """
    _check(q, k, v, layout, key_bias)
    with torch.cuda.device_of(q):
        return launch_forward(q, k, v, layout, scale, key_bias)


def backward(
    d_out: Tensor,
    d_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    layout: BlockLayout,
    scale: float,
    key_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of `forward`, without atomics: the same inputs and configurations give the same bits.

    Args:
        d_out: [B, H, N, V] in q's dtype.
        d_lse: fp32 [B, H, N], or None where lse was not used.
        out, lse: what forward returned for the same q, k, v, layout, scale and key_bias.

    Returns:
        dq, dk, dv, dense, in the shapes and dtypes of q, k, v; d_bias fp32 in key_bias's shape, or None with it.

    Raises:
        ValueError: as forward does, and for a d_out of another shape or dtype than out's.
    """
    _check(q, k, v, layout, key_bias)
    if d_out.shape != out.shape or d_out.dtype != q.dtype:
        found, wanted = f"{list(d_out.shape)} {d_out.dtype}", f"{list(out.shape)} {q.dtype}"
        raise ValueError(f"d_out is {found}; expected {wanted}, as out is")
    with torch.cuda.device_of(q):
        arguments = backward_arguments(d_out, d_lse, q, k, v, out, lse, layout, scale, key_bias)
        dq = launch_dq(q, k, v, layout, key_bias, arguments)
        return dq, *launch_dkdv(q, k, v, layout, key_bias, arguments)


def _check(q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, key_bias: Tensor | None) -> None:
    """Refuse what the kernels cannot do, and sizes by which they would read outside the tensors."""
    if importlib.util.find_spec("triton") is None:
        raise ValueError("the Triton kernels need the package 'triton', which is not installed; choose another backend")
    check_arguments(q, k, v, layout, key_bias)
    if not q.is_cuda and not interpreting():
        raise ValueError(f"q is on {q.device}; expected a CUDA device for the Triton kernels")
    if q.dtype not in _DTYPES:
        raise ValueError(f"q is of {q.dtype}; expected bf16, fp16 or fp32 for the Triton kernels")
    check_head_dims(q.shape[-1], v.shape[-1])
