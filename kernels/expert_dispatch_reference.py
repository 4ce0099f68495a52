"""Expert dispatch written out: each expert's product with every row, of which a mask keeps the expert's own.

What the other backends are held against. Any device and floating dtype; arithmetic in fp64 for fp64, in fp32 for all
else. Shape suffixes: T tokens, A assignments, E experts, C channels in, F channels out. No autograd in here.
"""

import torch
from torch import Tensor

from mezzotint.kernels.expert_arguments import check_ends, check_tokens


def gather(x: Tensor, index: Tensor) -> Tensor:
    """x [T, C] at index [A]: [A, C]."""
    _check_values(index, x.shape[0])
    return x[index]


def scatter(y: Tensor, index: Tensor, gate: Tensor | None, num_tokens: int) -> Tensor:
    """Sums of gate [A] * y [A, C] by token: [T, C]. index_put_ sorts before it adds on a GPU: no atomics."""
    _check_values(index, num_tokens)
    wide = _wide(y.dtype)
    rows = y.to(wide) if gate is None else y.to(wide) * gate.to(wide)[:, None]
    out = rows.new_zeros(num_tokens, y.shape[1])
    return out.index_put_((index,), rows, accumulate=True).to(y.dtype)


def scatter_backward(d_out: Tensor, y: Tensor, index: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of y [A, C] and gate [A]."""
    rows, wide = d_out[index].to(_wide(y.dtype)), _wide(y.dtype)
    return (rows * gate.to(wide)[:, None]).to(y.dtype), (rows * y.to(wide)).sum(1).to(gate.dtype)


def linear(x: Tensor, weights: Tensor, bias: Tensor | None, offsets: Tensor) -> Tensor:
    """x [A, C], weights [E, C, F], bias [E, F] or None, offsets [E + 1]: [A, F]."""
    wide = _wide(x.dtype)
    out = x.new_zeros((x.shape[0], weights.shape[2]), dtype=wide)
    for expert, member in enumerate(_members(offsets, x.shape[0])):
        product = x.to(wide) @ weights[expert].to(wide)
        if bias is not None:
            product = product + bias[expert].to(wide)
        out = torch.where(member, product, out)
    return out.to(x.dtype)


def linear_backward(
    d_out: Tensor, x: Tensor, weights: Tensor, offsets: Tensor, with_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weights and bias (empty without one)."""
    wide = _wide(x.dtype)
    dx = x.new_zeros(x.shape, dtype=wide)
    d_weights = weights.new_zeros(weights.shape, dtype=wide)
    d_bias = x.new_zeros((weights.shape[0], weights.shape[2]) if with_bias else (0,), dtype=wide)
    for expert, member in enumerate(_members(offsets, x.shape[0])):
        own = torch.where(member, d_out.to(wide), 0)
        dx += own @ weights[expert].to(wide).t()
        d_weights[expert] = torch.where(member, x.to(wide), 0).t() @ own
        if with_bias:
            d_bias[expert] = own.sum(0)
    return dx.to(x.dtype), d_weights.to(x.dtype), d_bias.to(x.dtype)


def _check_values(index: Tensor, num_tokens: int) -> None:
    """On a CPU only: elsewhere the host would wait for the device."""
    if index.device.type == "cpu":
        check_tokens(index, num_tokens)


def _members(offsets: Tensor, num_rows: int) -> list[Tensor]:
    """For each expert which rows are its own, bool [A, 1]."""
    if offsets.device.type == "cpu":
        check_ends(offsets.tolist(), num_rows)
    rows = torch.arange(num_rows, device=offsets.device)[:, None]
    return [(rows >= offsets[e]) & (rows < offsets[e + 1]) for e in range(len(offsets) - 1)]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
