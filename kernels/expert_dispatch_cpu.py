"""Expert dispatch on a CPU: torch's products on each expert's slice of rows, and sums by token.

Shape suffixes: T tokens, A assignments, E experts, C channels in, F channels out. No autograd in here.
"""

from collections.abc import Iterator

import torch
from torch import Tensor


def gather(x: Tensor, index: Tensor) -> Tensor:
    """x [T, C] at index [A]: [A, C]."""
    _check_index(index, x.shape[0])
    return x.index_select(0, index)


def scatter(y: Tensor, index: Tensor, gate: Tensor | None, num_tokens: int) -> Tensor:
    """Sums of gate [A] * y [A, C] by token: [T, C]. torch adds the rows one after the other, in their order."""
    _check_index(index, num_tokens)
    wide = _wide(y.dtype)
    rows = y.to(wide) if gate is None else y.to(wide) * gate.to(wide)[:, None]
    return torch.zeros(num_tokens, y.shape[1], dtype=wide).index_add_(0, index, rows).to(y.dtype)


def scatter_backward(d_out: Tensor, y: Tensor, index: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of y [A, C] and gate [A]: gate * d_out[index], and the inner products of y and d_out[index]."""
    rows = d_out.index_select(0, index).to(_wide(y.dtype))
    return (rows * gate.to(rows.dtype)[:, None]).to(y.dtype), (rows * y).sum(1).to(gate.dtype)


def linear(x: Tensor, weights: Tensor, bias: Tensor | None, offsets: Tensor) -> Tensor:
    """x [A, C], weights [E, C, F], bias [E, F] or None, offsets [E + 1]: [A, F]."""
    out = x.new_empty(x.shape[0], weights.shape[2])
    for expert, rows in _slices(offsets, x.shape[0]):
        if bias is None:
            torch.mm(x[rows], weights[expert], out=out[rows])
        else:
            torch.addmm(bias[expert], x[rows], weights[expert], out=out[rows])
    return out


def linear_backward(
    d_out: Tensor, x: Tensor, weights: Tensor, offsets: Tensor, with_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weights and bias (empty without one). An expert without rows gets zeros."""
    dx, d_weights = x.new_empty(x.shape), weights.new_zeros(weights.shape)
    d_bias = x.new_zeros((weights.shape[0], weights.shape[2]) if with_bias else (0,))
    for expert, rows in _slices(offsets, x.shape[0]):
        torch.mm(d_out[rows], weights[expert].t(), out=dx[rows])
        torch.mm(x[rows].t(), d_out[rows], out=d_weights[expert])
        if with_bias:
            torch.sum(d_out[rows], 0, out=d_bias[expert])
    return dx, d_weights, d_bias


def _slices(offsets: Tensor, num_rows: int) -> Iterator[tuple[int, slice]]:
    """Experts that have rows, and which."""
    ends = offsets.tolist()
    if ends[0] != 0 or ends[-1] != num_rows or ends != sorted(ends):
        raise ValueError(f"offsets is {ends}; expected ascending numbers from 0 to {num_rows}, the rows.")
    for expert in range(len(ends) - 1):
        if ends[expert] < ends[expert + 1]:
            yield expert, slice(ends[expert], ends[expert + 1])


def _check_index(index: Tensor, num_tokens: int) -> None:
    if index.numel() == 0:
        return
    least, most = (int(value) for value in index.aminmax())
    if least < 0 or most >= num_tokens:
        raise ValueError(f"index has values from {least} to {most}; expected 0 to {num_tokens - 1}, the tokens.")


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
