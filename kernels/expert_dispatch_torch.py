"""Expert dispatch in torch's own operators, on a CPU: products on each expert's slice of rows, and sums by token.

Shape suffixes: T tokens, A assignments, E experts, C channels in, F channels out. No autograd in here.
"""

from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from mezzotint.kernels.expert_arguments import check_ends, check_tokens

Parts: TypeAlias = Tensor | tuple[Tensor, ...]
"""Matrices of each expert: [E, m, n], or one by one."""


def gather(x: Tensor, index: Tensor) -> Tensor:
    """x [T, C] at index [A]: [A, C]."""
    out = x.new_empty(index.shape[0], x.shape[1])
    if out.shape[0] == 0:
        return out
    try:
        return torch.index_select(x, 0, index, out=out)
    except (IndexError, RuntimeError):  # torch looks at every index as well; its sentence does not say which one
        check_tokens(index, x.shape[0])
        raise


def scatter(y: Tensor, index: Tensor, gate: Tensor | None, num_tokens: int) -> Tensor:
    """Sums of gate [A] * y [A, C] by token: [T, C]. torch adds the rows one after the other, in their order."""
    check_tokens(index, num_tokens)
    wide = _wide(y.dtype)
    rows = y.to(wide) if gate is None else y.to(wide) * gate.to(wide)[:, None]
    return torch.zeros(num_tokens, y.shape[1], dtype=wide).index_add_(0, index, rows).to(y.dtype)


def scatter_backward(d_out: Tensor, y: Tensor, index: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of y [A, C] and gate [A]: gate * d_out[index], and the inner products of y and d_out[index]."""
    rows = d_out.index_select(0, index).to(_wide(y.dtype))
    return (rows * gate.to(rows.dtype)[:, None]).to(y.dtype), (rows * y).sum(1).to(gate.dtype)


def linear(x: Tensor, weights: Tensor, bias: Tensor | None, offsets: Tensor) -> Tensor:
    """x [A, C], weights [E, C, F], bias [E, F] or None, offsets [E + 1]: [A, F]."""
    counts = _counts(offsets, x.shape[0])
    out = x.new_empty(x.shape[0], weights.shape[2])
    _multiply(_by_expert(x, counts), weights, _by_expert(out, counts), bias)
    return out


def linear_backward(
    d_out: Tensor, x: Tensor, weights: Tensor, offsets: Tensor, with_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weights and bias (empty without one). An expert without rows gets zeros."""
    counts = _counts(offsets, x.shape[0])
    dx, d_weights = x.new_empty(x.shape), weights.new_empty(weights.shape)
    d_rows = _by_expert(d_out, counts)
    _multiply(d_rows, weights.transpose(1, 2), _by_expert(dx, counts))
    _multiply(_transposed(_by_expert(x, counts)), d_rows, d_weights)
    d_bias = torch.stack([rows.sum(0) for rows in d_rows]) if with_bias else x.new_empty(0)
    return dx, d_weights, d_bias


def _counts(offsets: Tensor, num_rows: int) -> list[int]:
    """How many rows each expert has."""
    ends: list[int] = offsets.tolist()
    num_experts = len(ends) - 1
    if num_rows and ends == [*range(0, num_rows + 1, -(-num_rows // num_experts))]:  # as many for all: soon seen
        return [num_rows // num_experts] * num_experts
    check_ends(ends, num_rows)
    return [end - start for start, end in pairwise(ends)]


def _by_expert(rows: Tensor, counts: list[int]) -> Parts:
    """Views of each expert's rows; one tensor [E, rows, C] where all have as many, as in expert choice."""
    if counts.count(counts[0]) == len(counts):
        return rows.view(len(counts), counts[0], rows.shape[1])
    return rows.split(counts)


def _transposed(parts: Parts) -> Parts:
    return parts.transpose(1, 2) if isinstance(parts, Tensor) else tuple(part.t() for part in parts)


def _multiply(left: Parts, right: Parts, out: Parts, bias: Tensor | None = None) -> None:
    """out[e] = left[e] @ right[e] + bias[e]. In one call where it can be, in which threads meet once and not at every
    expert; an inner dimension of 0 gives zeros."""
    if isinstance(left, Tensor) and isinstance(right, Tensor) and isinstance(out, Tensor):
        if bias is None:
            torch.bmm(left, right, out=out)
        else:
            torch.baddbmm(bias[:, None], left, right, out=out)
        return
    for expert, (one, other, result) in enumerate(zip(left, right, out, strict=True)):
        if bias is None:
            torch.mm(one, other, out=result)
        else:
            torch.addmm(bias[expert], one, other, out=result)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
