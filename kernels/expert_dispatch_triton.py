"""Expert dispatch in Triton: a grouped product whose programs find their expert on the device, and sums by token over
sorted lists. No atomics, and the host waits for nothing.

Shape suffixes: T tokens, A assignments, E experts, C channels in, F channels out. No autograd in here.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ProductConfig:
    """Tiles of a grouped product: rows of tokens, channels that are summed over and channels out; warps; stages."""

    rows: int
    inner: int
    outer: int
    num_warps: int
    num_stages: int


PRODUCT = {2: ProductConfig(128, 64, 128, 8, 3), 4: ProductConfig(64, 32, 64, 4, 2)}
"""For rows times weights, by bytes an element: 98,304 and 16,384 bytes of shared memory on sm_90, and no spills."""

WEIGHTS = {2: ProductConfig(64, 128, 128, 8, 3), 4: ProductConfig(32, 64, 64, 4, 2)}
"""For the gradient of the weights, which is summed over rows: 98,304 and 17,408 bytes at most, and no spills."""

SUM_CHANNELS = 1024
"""Most channels that a program of the row kernels holds at a time."""


@triton.jit
def grouped_product(
    x_ptr, w_ptr, bias_ptr, out_ptr, offsets_ptr, num_experts, inner, outer, num_column_tiles, x_row, x_column,
    w_expert, w_inner, w_outer, EXPERTS: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr, OUTER: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """One tile of out [A, outer] = x [A, inner] @ w[expert of the row] (+ bias). Tiles never cross experts."""
    tile = (tl.program_id(0) // num_column_tiles).to(tl.int64)
    columns = (tl.program_id(0) % num_column_tiles) * OUTER + tl.arange(0, OUTER)
    experts = tl.arange(0, EXPERTS)
    starts = tl.load(offsets_ptr + experts, mask=experts < num_experts, other=0)
    ends = tl.load(offsets_ptr + experts + 1, mask=experts < num_experts, other=0)
    tiles = (ends - starts + ROWS - 1) // ROWS
    tiles_up_to = tl.cumsum(tiles, 0)
    expert = tl.sum((tiles_up_to <= tile).to(tl.int64), 0)
    if expert < num_experts:  # there are programs for the most tiles that any offsets could make
        own = experts == expert
        start = tl.sum(tl.where(own, starts, 0), 0)
        end = tl.sum(tl.where(own, ends, 0), 0)
        tile_of_expert = tile - tl.sum(tl.where(own, tiles_up_to - tiles, 0), 0)
        rows = start + tile_of_expert * ROWS + tl.arange(0, ROWS)
        row_inside = (rows < end)[:, None]
        column_inside = (columns < outer)[None, :]
        w = w_ptr + expert * w_expert + columns.to(tl.int64)[None, :] * w_outer
        total = tl.zeros([ROWS, OUTER], dtype=tl.float32)
        for first in range(0, inner, INNER):
            steps = first + tl.arange(0, INNER)
            step_inside = steps < inner
            left = tl.load(
                x_ptr + rows[:, None] * x_row + steps[None, :] * x_column,
                mask=row_inside & step_inside[None, :], other=0.0,
            )  # fmt: skip
            right = tl.load(w + steps[:, None] * w_inner, mask=step_inside[:, None] & column_inside, other=0.0)
            # The interpreter multiplies the bit patterns of bf16, so there (and only there) operands are widened.
            if UPCAST:
                left = left.to(tl.float32)
                right = right.to(tl.float32)
            total = tl.dot(left, right, total, input_precision="ieee")
        if bias_ptr is not None:
            bias = tl.load(bias_ptr + expert * outer + columns, mask=columns < outer, other=0.0)
            total += bias.to(tl.float32)[None, :]
        out = out_ptr + rows[:, None] * outer + columns[None, :]
        tl.store(out, total.to(out_ptr.dtype.element_ty), mask=row_inside & column_inside)


@triton.jit
def grouped_weights(
    x_ptr, d_out_ptr, d_w_ptr, d_bias_ptr, offsets_ptr, inner, outer, num_inner_tiles, num_outer_tiles, x_row, x_column,
    d_row, d_column, ROWS: tl.constexpr, INNER: tl.constexpr, OUTER: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One tile of d_w [E, inner, outer]: x^T d_out over the rows of an expert, in their order; d_bias [E, outer]."""
    num_tiles = num_inner_tiles * num_outer_tiles
    expert = (tl.program_id(0) // num_tiles).to(tl.int64)
    tile = tl.program_id(0) % num_tiles
    inner_tile = tile // num_outer_tiles
    channels = inner_tile * INNER + tl.arange(0, INNER)
    columns = (tile % num_outer_tiles) * OUTER + tl.arange(0, OUTER)
    start = tl.load(offsets_ptr + expert)
    end = tl.load(offsets_ptr + expert + 1)
    total = tl.zeros([INNER, OUTER], dtype=tl.float32)
    of_bias = tl.zeros([OUTER], dtype=tl.float32)
    for first in range(start, end, ROWS):
        rows = first + tl.arange(0, ROWS)
        row_inside = (rows < end)[:, None]
        x = tl.load(
            x_ptr + rows[:, None] * x_row + channels[None, :] * x_column,
            mask=row_inside & (channels < inner)[None, :], other=0.0,
        )  # fmt: skip
        d_out = tl.load(
            d_out_ptr + rows[:, None] * d_row + columns[None, :] * d_column,
            mask=row_inside & (columns < outer)[None, :], other=0.0,
        )  # fmt: skip
        if UPCAST:
            x = x.to(tl.float32)
            d_out = d_out.to(tl.float32)
        total = tl.dot(tl.trans(x), d_out, total, input_precision="ieee")
        if d_bias_ptr is not None:
            of_bias += tl.sum(d_out.to(tl.float32), 0)
    inside = (channels < inner)[:, None] & (columns < outer)[None, :]
    d_w = d_w_ptr + (expert * inner + channels[:, None]) * outer + columns[None, :]
    tl.store(d_w, total.to(d_w_ptr.dtype.element_ty), mask=inside)
    if d_bias_ptr is not None:
        d_bias = d_bias_ptr + expert * outer + columns
        tl.store(d_bias, of_bias.to(d_bias_ptr.dtype.element_ty), mask=(columns < outer) & (inner_tile == 0))


@triton.jit
def scatter_rows(
    y_ptr, gate_ptr, order_ptr, token_offsets_ptr, out_ptr, channels, num_blocks, y_row, y_column, WIDTH: tl.constexpr
):  # fmt: skip
    """WIDTH channels of one token: the sum of gate * y over the assignments of its list, in their order."""
    token = (tl.program_id(0) // num_blocks).to(tl.int64)
    columns = (tl.program_id(0) % num_blocks) * WIDTH + tl.arange(0, WIDTH)
    inside = columns < channels
    total = tl.zeros([WIDTH], dtype=tl.float32)
    for at in range(tl.load(token_offsets_ptr + token), tl.load(token_offsets_ptr + token + 1)):
        row = tl.load(order_ptr + at)
        value = tl.load(y_ptr + row * y_row + columns * y_column, mask=inside, other=0.0).to(tl.float32)
        if gate_ptr is not None:
            value = value * tl.load(gate_ptr + row).to(tl.float32)
        total += value
    tl.store(out_ptr + token * channels + columns, total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def scatter_rows_backward(
    d_out_ptr, y_ptr, index_ptr, gate_ptr, dy_ptr, d_gate_ptr, channels, d_row, d_column, y_row, y_column,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """One assignment: dy = gate * d_out[token], d_gate = y . d_out[token]."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.load(index_ptr + row)
    gate = tl.load(gate_ptr + row).to(tl.float32)
    product = tl.zeros([WIDTH], dtype=tl.float32)
    for first in range(0, channels, WIDTH):
        columns = first + tl.arange(0, WIDTH)
        inside = columns < channels
        d_out = tl.load(d_out_ptr + token * d_row + columns * d_column, mask=inside, other=0.0).to(tl.float32)
        product += d_out * tl.load(y_ptr + row * y_row + columns * y_column, mask=inside, other=0.0).to(tl.float32)
        tl.store(dy_ptr + row * channels + columns, (gate * d_out).to(dy_ptr.dtype.element_ty), mask=inside)
    tl.store(d_gate_ptr + row, tl.sum(product, 0).to(d_gate_ptr.dtype.element_ty))


def gather(x: Tensor, index: Tensor) -> Tensor:
    """x [T, C] at index [A]: [A, C]. A copy of rows, for which torch's own kernel is as good as any."""
    return x.index_select(0, index)


def scatter(y: Tensor, index: Tensor, gate: Tensor | None, num_tokens: int) -> Tensor:
    """Sums of gate [A] * y [A, C] by token: [T, C]. An index outside of the tokens is left out."""
    channels = y.shape[1]
    out = y.new_empty(num_tokens, channels)
    tokens, order = index.sort(stable=True)
    token_offsets = torch.searchsorted(tokens, torch.arange(num_tokens + 1, device=y.device))
    if out.numel() > 0:
        options = _row_options(channels)
        num_blocks = triton.cdiv(channels, options["WIDTH"])
        with torch.cuda.device_of(y):
            scatter_rows[(num_tokens * num_blocks,)](
                y, None if gate is None else gate.contiguous(), order, token_offsets, out, channels, num_blocks,
                *y.stride(), **options,
            )  # fmt: skip
    return out


def scatter_backward(d_out: Tensor, y: Tensor, index: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of y [A, C] and gate [A]."""
    dy, d_gate = y.new_empty(y.shape), gate.new_empty(gate.shape)
    if y.shape[0] > 0:
        with torch.cuda.device_of(y):
            scatter_rows_backward[(y.shape[0],)](
                d_out, y, index.contiguous(), gate.contiguous(), dy, d_gate, y.shape[1], *d_out.stride(), *y.stride(),
                **_row_options(y.shape[1]),
            )  # fmt: skip
    return dy, d_gate


def linear(x: Tensor, weights: Tensor, bias: Tensor | None, offsets: Tensor) -> Tensor:
    """x [A, C], weights [E, C, F], bias [E, F] or None, offsets [E + 1]: [A, F]."""
    return _product(x, weights, None if bias is None else bias.contiguous(), offsets.contiguous())


def linear_backward(
    d_out: Tensor, x: Tensor, weights: Tensor, offsets: Tensor, with_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weights and bias (empty without one). An expert without rows gets zeros."""
    offsets = offsets.contiguous()
    dx = _product(d_out, weights.transpose(1, 2), None, offsets)
    d_weights = weights.new_empty(weights.shape)
    num_experts, inner, outer = weights.shape
    d_bias = x.new_empty((num_experts, outer) if with_bias else (0,))
    config = WEIGHTS[x.element_size()]
    tiles = triton.cdiv(inner, config.inner), triton.cdiv(outer, config.outer)
    if d_weights.numel() > 0:
        with torch.cuda.device_of(x):
            grouped_weights[(num_experts * tiles[0] * tiles[1],)](
                x, d_out, d_weights, d_bias if with_bias else None, offsets, inner, outer, *tiles, *x.stride(),
                *d_out.stride(), **_product_options(config, x),
            )  # fmt: skip
    return dx, d_weights, d_bias


def _product(x: Tensor, weights: Tensor, bias: Tensor | None, offsets: Tensor) -> Tensor:
    (num_rows, inner), (num_experts, _, outer) = x.shape, weights.shape
    out = x.new_empty(num_rows, outer)
    config = PRODUCT[x.element_size()]
    # Every expert may end in a tile that is not full.
    num_tiles, num_column_tiles = triton.cdiv(num_rows, config.rows) + num_experts, triton.cdiv(outer, config.outer)
    if out.numel() > 0:
        with torch.cuda.device_of(x):
            grouped_product[(num_tiles * num_column_tiles,)](
                x, weights, bias, out, offsets, num_experts, inner, outer, num_column_tiles, *x.stride(),
                *weights.stride(), EXPERTS=triton.next_power_of_2(num_experts), **_product_options(config, x),
            )  # fmt: skip
    return out


def _product_options(config: ProductConfig, x: Tensor) -> dict[str, Any]:
    return {
        "ROWS": config.rows, "INNER": config.inner, "OUTER": config.outer, "num_warps": config.num_warps,
        "num_stages": config.num_stages, "UPCAST": triton.knobs.runtime.interpret and x.dtype != torch.float32,
    }  # fmt: skip


def _row_options(channels: int) -> dict[str, int]:
    width = min(max(16, triton.next_power_of_2(channels)), SUM_CHANNELS)
    return {"WIDTH": width, "num_warps": min(max(width // 256, 1), 4)}
