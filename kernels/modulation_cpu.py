"""Norm, scale and shift on a CPU in our own C kernel (native/modulation.c).

Shape suffixes: B batch, N tokens, C channels. No autograd in here.
"""

import struct

import torch
from torch import Tensor

from mezzotint.kernels.native_build import why_not_native
from mezzotint.kernels.native_call import ELEMENTS, call_native, level
from mezzotint.kernels.native_team import team_address

CHUNK = 64
"""Tokens of one unit of work. Fixed, since it groups the sums over tokens, which no number of threads may move."""

SERIAL_ELEMENTS = 32_768
"""Elements of x for which one thread is enough: waking a second one costs more than it saves."""

_CALL = struct.Struct("=25qd")  # struct modulation_call of native/modulation.c


def why_not(x: Tensor, shift: Tensor, scale: Tensor) -> str | None:
    """What keeps this backend from running, in words that end a sentence; None when nothing does."""
    if x.device.type != "cpu":
        return f"x is on {x.device} and not on cpu"
    if x.dtype not in ELEMENTS or scale.dtype not in ELEMENTS:
        return f"x is of {x.dtype} and scale of {scale.dtype}, and the C kernel takes bf16 and fp32"
    for name, given in (("x", x), ("shift", shift), ("scale", scale)):
        if given.stride(-1) != 1 and given.shape[-1] > 1:
            return f"{name} has stride {given.stride(-1)} in its last dimension, and the C kernel takes 1"
    return why_not_native()


def forward(x: Tensor, shift: Tensor, scale: Tensor, norm: str, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x [B, N, C] and shift and scale [B, C], each fp32 or bf16; fp32 arithmetic.

    Returns out [B, N, C] in x's dtype, and mean (empty for the RMS norm) and 1 / std, fp32 [B, N].
    """
    B, N, _ = x.shape
    out = torch.empty(x.shape, dtype=x.dtype)
    mean = torch.empty((B, N) if norm == "layer" else (0,), dtype=torch.float32)
    rstd = torch.empty((B, N), dtype=torch.float32)
    tensors = (x, None, shift, scale, out, _or_none(mean, norm), rstd, None, None, None)
    _run("modulation_forward", tensors, eps)
    return out, mean, rstd


def backward(
    d_out: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor, norm: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, shift and scale. The same bits for the same input, whatever the number of threads."""
    B, N, C = x.shape
    if d_out.stride(-1) != 1 or d_out.dtype != x.dtype:  # autograd hands over expanded and transposed gradients
        d_out = d_out.to(x.dtype).contiguous()
    dx = torch.empty(x.shape, dtype=x.dtype)
    partial = torch.empty((B, -(-N // CHUNK), 2, -(-C // 16) * 16), dtype=torch.float32)
    d_shift, d_scale = (torch.empty((B, C), dtype=scale.dtype) for _ in range(2))
    tensors = (x, d_out, None, scale, dx, _or_none(mean, norm), rstd, partial, d_shift, d_scale)
    _run("modulation_backward", tensors, 0.0)
    return dx, d_shift, d_scale


def _or_none(mean: Tensor, norm: str) -> Tensor | None:
    return mean if norm == "layer" else None


def _run(function: str, tensors: tuple[Tensor | None, ...], eps: float) -> None:
    """tensors: in the order of struct modulation_call."""
    x, d_out, shift, scale = tensors[:4]
    assert x is not None
    assert scale is not None
    call_native(
        function,
        _CALL,
        *(0 if tensor is None else tensor.data_ptr() for tensor in tensors),
        team_address(),
        *x.stride()[:2],
        *((0, 0) if d_out is None else d_out.stride()[:2]),
        0 if shift is None else shift.stride(0),
        scale.stride(0),
        *x.shape,
        *(CHUNK, torch.get_num_threads() if x.numel() > SERIAL_ELEMENTS else 1),
        *(ELEMENTS[x.dtype], ELEMENTS[scale.dtype], level()),
        eps,
    )
