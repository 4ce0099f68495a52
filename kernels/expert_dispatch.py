"""Mixture of experts by lists of assignments: gather, a product with each expert's weights, scatter; no one-hot matrix.

    routing = expert_choice(scores, capacity)                       # or token_choice
    rows = gather_tokens(x, routing.index)
    rows = gelu(grouped_linear(rows, w1, None, routing.offsets))
    rows = grouped_linear(rows, w2, None, routing.offsets)
    x = scatter_add(rows, routing.index, routing.gate, len(x))

The same in one operation is `expert_mlp` (expert_mlp.py), which is faster where tokens are few.

torch.library operations with fake and autograd registrations, so that torch.compile traces them and the FLOP counter
counts the rows that are there. Which backend runs is decided by `chosen_backend` before anything is computed; a case
that it cannot do raises. All are deterministic. Shape suffixes: T tokens, A assignments, E experts, C channels in,
F channels out.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mezzotint.kernels.arguments import check, check_device, check_floating, check_whole
from mezzotint.kernels.expert_arguments import check_gate, check_list, check_offsets, check_weights
from mezzotint.kernels.expert_backends import BACKENDS, chosen_backend, last_backend, running

__all__ = ["BACKENDS", "chosen_backend", "gather_tokens", "grouped_linear", "last_backend", "scatter_add"]


def gather_tokens(x: Tensor, index: Tensor, *, backend: str = "auto") -> Tensor:
    """Rows x[index], one for each assignment.

    x: [T, C], floating point. index: int64 [A], 0 to T - 1. backend: "auto", or one of BACKENDS by name.
    Returns [A, C] in x's dtype. Raises ValueError naming the argument, its value and what was expected; values of
    `index` are looked at on a CPU only.
    """
    check_floating("x", x, 2, "[tokens, channels]")
    check_list("index", index, x)
    return _gather(x, index, chosen_backend(x, backend=backend))


def grouped_linear(
    x: Tensor, weights: Tensor, bias: Tensor | None, offsets: Tensor, *, backend: str = "auto"
) -> Tensor:
    """x[r] @ weights[e] + bias[e] for every row r of every expert e.

    x: [A, C], rows in the order of the experts. weights: [E, C, F] and bias: [E, F] or None, in x's dtype.
    offsets: int64 [E + 1], ascending from 0 to A: expert e has rows offsets[e] to offsets[e + 1] - 1, maybe none.
    backend: "auto", or one of BACKENDS by name.
    Returns [A, F] in x's dtype; sums are fp32 (fp64 for fp64). Raises ValueError naming the argument, its value and
    what was expected; values of `offsets` are looked at on a CPU only.
    """
    check_floating("x", x, 2, "[rows, channels]")
    check_weights("weights", weights, x, x.shape[1])
    E, _, F = weights.shape
    if bias is not None:
        check_floating("bias", bias, 2, "[experts, channels out]")
        check_device("bias", bias, x.device)
        check(bias.dtype == x.dtype, "bias", bias.dtype, x.dtype, ", as x is")
        check(bias.shape == (E, F), "bias", bias.shape, [E, F], ", weights' experts and channels out")
    check_offsets(offsets, x, E)
    return _linear(x, weights, bias, offsets, chosen_backend(x, backend=backend))


def scatter_add(
    y: Tensor, index: Tensor, gate: Tensor | None, num_tokens: int, *, backend: str = "auto"
) -> Tensor:
    """out[t] = sum of gate[a] * y[a] over the assignments a whose index[a] is t; 0 where there is none.

    y: [A, C], floating point. index: int64 [A], 0 to num_tokens - 1. gate: [A], floating point, or None for ones.
    num_tokens: T, at least 0. backend: "auto", or one of BACKENDS by name.
    Returns [T, C] in y's dtype; sums are fp32 (fp64 for fp64), in the order of the assignments. Raises ValueError
    naming the argument, its value and what was expected; values of `index` are looked at on a CPU only.
    """
    check_floating("y", y, 2, "[assignments, channels]")
    check_list("index", index, y)
    check(index.shape[0] == y.shape[0], "index", index.shape, [y.shape[0]], ", one for each row of y")
    check_whole("num_tokens", num_tokens, 0)
    if gate is not None:
        check_gate(gate, y.shape[0], y, "row of y")
    return _scatter(y, index, gate, num_tokens, chosen_backend(y, backend=backend))


@torch.library.custom_op("mezzotint::gather_tokens", mutates_args=())
def _gather(x: Tensor, index: Tensor, backend: str) -> Tensor:
    return running(backend).gather(x, index)


@_gather.register_fake
def _(x: Tensor, index: Tensor, backend: str) -> Tensor:
    return x.new_empty(index.shape[0], x.shape[1])


def _gather_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, index, ctx.backend = inputs
    ctx.num_tokens = x.shape[0]
    ctx.save_for_backward(index)


def _gather_backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    return _scatter(d_out, ctx.saved_tensors[0], None, ctx.num_tokens, ctx.backend), None, None


_gather.register_autograd(_gather_backward, setup_context=_gather_context)


@torch.library.custom_op("mezzotint::scatter_add", mutates_args=())
def _scatter(y: Tensor, index: Tensor, gate: Tensor | None, num_tokens: int, backend: str) -> Tensor:
    return running(backend).scatter(y, index, gate, num_tokens)


@_scatter.register_fake
def _(y: Tensor, index: Tensor, gate: Tensor | None, num_tokens: int, backend: str) -> Tensor:
    return y.new_empty(num_tokens, y.shape[1])


@torch.library.custom_op("mezzotint::scatter_add_backward", mutates_args=())
def _scatter_backward_op(
    d_out: Tensor, y: Tensor, index: Tensor, gate: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    return running(backend).scatter_backward(d_out, y, index, gate)


@_scatter_backward_op.register_fake
def _(d_out: Tensor, y: Tensor, index: Tensor, gate: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return y.new_empty(y.shape), gate.new_empty(gate.shape)


def _scatter_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    y, index, gate, _, ctx.backend = inputs
    ctx.save_for_backward(index, *(() if gate is None else (y, gate)))


def _scatter_backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    index, *gated = ctx.saved_tensors
    if not gated:
        return _gather(d_out, index, ctx.backend), None, None, None, None
    dy, d_gate = _scatter_backward_op(d_out, gated[0], index, gated[1], ctx.backend)
    return dy, None, d_gate, None, None


_scatter.register_autograd(_scatter_backward, setup_context=_scatter_context)


@torch.library.custom_op("mezzotint::grouped_linear", mutates_args=())
def _linear(x: Tensor, weights: Tensor, bias: Tensor | None, offsets: Tensor, backend: str) -> Tensor:
    return running(backend).linear(x, weights, bias, offsets)


@_linear.register_fake
def _(x: Tensor, weights: Tensor, bias: Tensor | None, offsets: Tensor, backend: str) -> Tensor:
    return x.new_empty(x.shape[0], weights.shape[2])


@torch.library.custom_op("mezzotint::grouped_linear_backward", mutates_args=())
def _linear_backward_op(
    d_out: Tensor, x: Tensor, weights: Tensor, offsets: Tensor, with_bias: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return running(backend).linear_backward(d_out, x, weights, offsets, with_bias)


@_linear_backward_op.register_fake
def _(
    d_out: Tensor, x: Tensor, weights: Tensor, offsets: Tensor, with_bias: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    d_bias = x.new_empty((weights.shape[0], weights.shape[2]) if with_bias else (0,))
    return x.new_empty(x.shape), weights.new_empty(weights.shape), d_bias


def _linear_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weights, bias, offsets, ctx.backend = inputs
    ctx.with_bias = bias is not None
    ctx.save_for_backward(x, weights, offsets)


def _linear_backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    dx, d_weights, d_bias = _linear_backward_op(d_out, *ctx.saved_tensors, ctx.with_bias, ctx.backend)
    return dx, d_weights, d_bias if ctx.with_bias else None, None, None


_linear.register_autograd(_linear_backward, setup_context=_linear_context)


@register_flop_formula(torch.ops.mezzotint.grouped_linear)
def _linear_flops(x_shape: Any, weights_shape: Any, *rest: Any, **_: Any) -> int:
    """Each row meets one expert."""
    return 2 * x_shape[0] * weights_shape[1] * weights_shape[2]


@register_flop_formula(torch.ops.mezzotint.grouped_linear_backward)
def _linear_backward_flops(d_out_shape: Any, x_shape: Any, weights_shape: Any, *rest: Any, **_: Any) -> int:
    """A product for x and one for the weights."""
    return 4 * x_shape[0] * weights_shape[1] * weights_shape[2]
