"""Norm, scale and shift in Triton: one program a row forward, one program a few rows backward, and no atomics.

Shape suffixes: B batch, N tokens, C channels. No autograd in here.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16
"""Tokens of one backward program. Fixed, since sums over tokens are grouped by it."""

SUM_CHANNELS = 128
"""Channels of one program that adds up the sums over tokens."""


@triton.jit
def modulate_forward(
    x_ptr, shift_ptr, scale_ptr, out_ptr, mean_ptr, rstd_ptr, num_tokens, channels, x_batch, x_token, shift_batch,
    scale_batch, eps, LAYER: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One row: out = norm(x) * (1 + scale) + shift. Strides in elements."""
    row = tl.program_id(0).to(tl.int64)
    batch, token = row // num_tokens, row % num_tokens
    columns = tl.arange(0, WIDTH)
    inside = columns < channels
    x = tl.load(x_ptr + batch * x_batch + token * x_token + columns, mask=inside, other=0.0).to(tl.float32)
    if LAYER:
        mean = tl.sum(x, 0) / channels
        tl.store(mean_ptr + row, mean)
        x = tl.where(inside, x - mean, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, 0) / channels + eps)
    tl.store(rstd_ptr + row, rstd)
    scale = tl.load(scale_ptr + batch * scale_batch + columns, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(shift_ptr + batch * shift_batch + columns, mask=inside, other=0.0).to(tl.float32)
    out = x * rstd * (1.0 + scale) + shift
    tl.store(out_ptr + row * channels + columns, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def modulate_backward(
    d_out_ptr, x_ptr, scale_ptr, mean_ptr, rstd_ptr, dx_ptr, partial_ptr, num_tokens, channels, num_chunks, d_out_batch,
    d_out_token, x_batch, x_token, scale_batch, LAYER: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """ROWS tokens of one picture: their dx, and their sums for shift and scale into partial [B, chunks, 2, C]."""
    chunk = tl.program_id(0).to(tl.int64)
    batch = chunk // num_chunks
    first = (chunk % num_chunks) * ROWS
    columns = tl.arange(0, WIDTH)
    inside = columns < channels
    gain = 1.0 + tl.load(scale_ptr + batch * scale_batch + columns, mask=inside, other=0.0).to(tl.float32)
    d_shift = tl.zeros([WIDTH], dtype=tl.float32)
    d_scale = tl.zeros([WIDTH], dtype=tl.float32)
    for token in range(first, tl.minimum(first + ROWS, num_tokens)):
        row = batch * num_tokens + token
        normed = tl.load(x_ptr + batch * x_batch + token * x_token + columns, mask=inside, other=0.0).to(tl.float32)
        if LAYER:
            normed = tl.where(inside, normed - tl.load(mean_ptr + row), 0.0)
        rstd = tl.load(rstd_ptr + row)
        normed = normed * rstd
        d_out = tl.load(d_out_ptr + batch * d_out_batch + token * d_out_token + columns, mask=inside, other=0.0)
        d_out = d_out.to(tl.float32)
        d_shift += d_out
        d_scale += d_out * normed
        g = d_out * gain
        dx = g - normed * (tl.sum(g * normed, 0) / channels)
        if LAYER:
            dx = dx - tl.sum(g, 0) / channels
        tl.store(dx_ptr + row * channels + columns, (dx * rstd).to(dx_ptr.dtype.element_ty), mask=inside)
    partial = partial_ptr + chunk * 2 * channels + columns
    tl.store(partial, d_shift, mask=inside)
    tl.store(partial + channels, d_scale, mask=inside)


@triton.jit
def modulate_sum(
    partial_ptr, d_shift_ptr, d_scale_ptr, channels, num_chunks, num_blocks, SUM_CHANNELS: tl.constexpr
):  # fmt: skip
    """Sums of all chunks of a picture, in their order, for SUM_CHANNELS channels."""
    program = tl.program_id(0).to(tl.int64)
    batch = program // num_blocks
    columns = (program % num_blocks) * SUM_CHANNELS + tl.arange(0, SUM_CHANNELS)
    inside = columns < channels
    d_shift = tl.zeros([SUM_CHANNELS], dtype=tl.float32)
    d_scale = tl.zeros([SUM_CHANNELS], dtype=tl.float32)
    for chunk in range(0, num_chunks):
        partial = partial_ptr + (batch * num_chunks + chunk) * 2 * channels + columns
        d_shift += tl.load(partial, mask=inside, other=0.0)
        d_scale += tl.load(partial + channels, mask=inside, other=0.0)
    tl.store(d_shift_ptr + batch * channels + columns, d_shift.to(d_shift_ptr.dtype.element_ty), mask=inside)
    tl.store(d_scale_ptr + batch * channels + columns, d_scale.to(d_scale_ptr.dtype.element_ty), mask=inside)


def forward(x: Tensor, shift: Tensor, scale: Tensor, norm: str, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x [B, N, C] and shift and scale [B, C], each bf16, fp16 or fp32; fp32 arithmetic.

    Returns out [B, N, C] in x's dtype, and mean (empty for the RMS norm) and 1 / std, fp32 [B, N].
    """
    B, N, C = x.shape
    out = x.new_empty(x.shape)
    mean = x.new_empty((B, N) if norm == "layer" else 0, dtype=torch.float32)
    rstd = x.new_empty((B, N), dtype=torch.float32)
    if x.numel() > 0:
        with torch.cuda.device_of(x):
            modulate_forward[(B * N,)](
                x, shift, scale, out, mean, rstd, N, C, x.stride(0), x.stride(1), shift.stride(0), scale.stride(0), eps,
                LAYER=norm == "layer", **_row_options(C),
            )  # fmt: skip
    return out, mean, rstd


def backward(
    d_out: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor, norm: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, shift and scale. The same bits for the same input."""
    B, N, C = x.shape
    if d_out.stride(-1) != 1 or d_out.dtype != x.dtype:  # autograd hands over expanded and transposed gradients
        d_out = d_out.to(x.dtype).contiguous()
    dx = x.new_empty(x.shape)
    d_shift, d_scale = scale.new_empty(scale.shape), scale.new_empty(scale.shape)
    num_chunks, num_blocks = triton.cdiv(N, ROWS), triton.cdiv(C, SUM_CHANNELS)
    partial = x.new_empty((B, num_chunks, 2, C), dtype=torch.float32)
    with torch.cuda.device_of(x):
        if x.numel() > 0:
            modulate_backward[(B * num_chunks,)](
                d_out, x, scale, mean, rstd, dx, partial, N, C, num_chunks, d_out.stride(0), d_out.stride(1),
                x.stride(0), x.stride(1), scale.stride(0), LAYER=norm == "layer", ROWS=ROWS, **_row_options(C),
            )  # fmt: skip
        if B > 0:
            modulate_sum[(B * num_blocks,)](
                partial, d_shift, d_scale, C, num_chunks, num_blocks, SUM_CHANNELS=SUM_CHANNELS, num_warps=4
            )  # fmt: skip
    return dx, d_shift, d_scale


def _row_options(channels: int) -> dict[str, int]:
    """A row in one vector; 256 channels a warp, 8 a thread, so that a bf16 row is read 16 bytes a thread."""
    width = max(16, triton.next_power_of_2(channels))
    return {"WIDTH": width, "num_warps": min(max(width // 256, 1), 16)}
