"""Experts of two matrices with a GELU between them, from tokens to tokens, as one operation.

It computes what `gather_tokens`, `grouped_linear`, F.gelu, `grouped_linear` and `scatter_add` do one after the other,
in the same backends. An operation of torch.library costs 20 microseconds in Python, 200 after a product has filled the
caches, and more on the way back: with few tokens that counts beside the products. Without gradients the GELU works in
place.

Shape suffixes: T tokens, A assignments, E experts, C channels, F hidden channels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mezzotint.kernels.arguments import check, check_floating, check_kind
from mezzotint.kernels.direct_call import may_call_directly
from mezzotint.kernels.expert_arguments import check_gate, check_list, check_offsets, check_weights
from mezzotint.kernels.expert_backends import chosen_backend, running
from mezzotint.kernels.expert_routing import ExpertRouting


def expert_mlp(x: Tensor, routing: ExpertRouting, w1: Tensor, w2: Tensor, *, backend: str = "auto") -> Tensor:
    """out[t] = sum of gate[a] * (gelu(x[t] @ w1[e]) @ w2[e]) over the assignments a of token t to an expert e; 0 where
    there is none.

    x: [T, C], floating point. routing: of `expert_choice` or `token_choice`, or any lists of that kind.
    w1: [E, C, F] and w2: [E, F, C out], in x's dtype. The GELU is exact (with erf). backend: "auto", or one of
    expert_backends.BACKENDS by name.
    Returns [T, C out] in x's dtype; what stands between the products is rounded to it, sums are fp32 (fp64 for fp64).
    Gradients flow to x, the gates and the weights. Raises ValueError naming the argument, its value and what was
    expected; values of `routing` are looked at on a CPU only.
    """
    check_floating("x", x, 2, "[tokens, channels]")
    check_kind("routing", routing, ExpertRouting)
    check_list("index", routing.index, x)
    check_gate(routing.gate, routing.index.shape[0], x, "assignment")
    check_weights("w1", w1, x, x.shape[1])
    check_weights("w2", w2, x, w1.shape[2])
    check(len(w1) == len(w2), "w2", w2.shape, f"{len(w1)} experts", ", as w1 has")
    check_offsets(routing.offsets, x, len(w1))
    name = chosen_backend(x, backend=backend)
    given = (x, routing.gate, w1, w2)
    if may_call_directly(*given):
        return _forward(*given, routing.index, routing.offsets, False, name)[0]
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
    return _expert_mlp(*given, routing.index, routing.offsets, keep, name)[0]


def _forward(
    x: Tensor, gate: Tensor, w1: Tensor, w2: Tensor, index: Tensor, offsets: Tensor, keep: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The result, and for the backward pass where `keep` is set (empty elsewhere): what goes into the GELU, what comes
    out of it, both [A, F], and the experts' answers [A, C out]."""
    run = running(backend)
    before = run.linear(run.gather(x, index), w1, None, offsets)
    hidden = F.gelu(before) if keep else torch.ops.aten.gelu_(before)
    rows = run.linear(hidden, w2, None, offsets)
    out = run.scatter(rows, index, gate, x.shape[0])
    if not keep:
        before, hidden, rows = (x.new_empty(0) for _ in range(3))
    return out, before, hidden, rows


_expert_mlp = torch.library.custom_op("mezzotint::expert_mlp", _forward, mutates_args=())


@_expert_mlp.register_fake
def _(
    x: Tensor, gate: Tensor, w1: Tensor, w2: Tensor, index: Tensor, offsets: Tensor, keep: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hidden = (index.shape[0], w1.shape[2]) if keep else (0,)
    rows = (index.shape[0], w2.shape[2]) if keep else (0,)
    return x.new_empty(x.shape[0], w2.shape[2]), x.new_empty(hidden), x.new_empty(hidden), x.new_empty(rows)


@torch.library.custom_op("mezzotint::expert_mlp_backward", mutates_args=())
def _expert_mlp_backward(
    d_out: Tensor, x: Tensor, gate: Tensor, w1: Tensor, w2: Tensor, index: Tensor, offsets: Tensor, before: Tensor,
    hidden: Tensor, rows: Tensor, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, gate, w1 and w2. x is gathered once more, which costs less than to keep its rows."""
    run = running(backend)
    d_rows, d_gate = run.scatter_backward(d_out, rows, index, gate)
    d_hidden, d_w2, _ = run.linear_backward(d_rows, hidden, w2, offsets, False)
    d_before = torch.ops.aten.gelu_backward(d_hidden, before)
    d_gathered, d_w1, _ = run.linear_backward(d_before, run.gather(x, index), w1, offsets, False)
    return run.scatter(d_gathered, index, None, x.shape[0]), d_gate, d_w1, d_w2


@_expert_mlp_backward.register_fake
def _(
    d_out: Tensor, x: Tensor, gate: Tensor, w1: Tensor, w2: Tensor, index: Tensor, offsets: Tensor, before: Tensor,
    hidden: Tensor, rows: Tensor, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), gate.new_empty(gate.shape), w1.new_empty(w1.shape), w2.new_empty(w2.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _, ctx.backend = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output[1:])


def _backward(ctx: Any, d_out: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if d_out is None:  # nothing came from behind
        return (None,) * 8
    return *_expert_mlp_backward(d_out, *ctx.saved_tensors, ctx.backend), None, None, None, None


_expert_mlp.register_autograd(_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.mezzotint.expert_mlp)
def _flops(x_shape: Any, gate_shape: Any, w1_shape: Any, w2_shape: Any, *rest: Any, **_: Any) -> int:
    """Each assignment meets the two matrices of one expert."""
    return 2 * gate_shape[0] * w1_shape[2] * (w1_shape[1] + w2_shape[2])


@register_flop_formula(torch.ops.mezzotint.expert_mlp_backward)
def _backward_flops(
    d_out_shape: Any, x_shape: Any, gate_shape: Any, w1_shape: Any, w2_shape: Any, *rest: Any, **_: Any
) -> int:
    """For each product one for its rows and one for its weights."""
    return 4 * gate_shape[0] * w1_shape[2] * (w1_shape[1] + w2_shape[2])
