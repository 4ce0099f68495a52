"""Mixture of experts by lists of assignments: gather, a product with each expert's weights, scatter; no one-hot matrix.

    routing = expert_choice(scores, capacity)                       # or token_choice
    rows = gather_tokens(x, routing.index)
    rows = gelu(grouped_linear(rows, w1, None, routing.offsets))
    rows = grouped_linear(rows, w2, None, routing.offsets)
    x = scatter_add(rows, routing.index, routing.gate, len(x))

torch.library operations with fake and autograd registrations, so that torch.compile traces them and the FLOP counter
counts the rows that are there. Which backend runs is decided by `chosen_backend` before anything is computed; a case
that it cannot do raises. All are deterministic. Shape suffixes: T tokens, A assignments, E experts, C channels in,
F channels out.
"""

import importlib.util
import threading
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mezzotint.kernels.arguments import check, check_device, check_floating

BACKENDS = {
    "reference": "explicit, with masks: any device and floating dtype, each expert's product with every row",
    "cpu": "torch's own products on each expert's rows, on a CPU, in any floating dtype",
    "triton": "our Triton kernels on CUDA, in bf16, fp16 and fp32",
}
"""Names, and what each is for. "auto" takes triton on CUDA, cpu on a CPU, and the reference where those cannot run."""

TRITON_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

_ran = threading.local()


def gather_tokens(x: Tensor, index: Tensor, *, backend: str = "auto") -> Tensor:
    """Rows x[index], one for each assignment.

    x: [T, C], floating point. index: int64 [A], 0 to T - 1. backend: "auto", or one of BACKENDS by name.
    Returns [A, C] in x's dtype. Raises ValueError naming the argument, its value and what was expected; values of
    `index` are looked at on a CPU only.
    """
    check_floating("x", x, 2, "[tokens, channels]")
    _check_list("index", index, x)
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
    check_floating("weights", weights, 3, "[experts, channels, channels out]")
    E, C, F = weights.shape
    check(x.shape[1] == C, "weights", weights.shape, "[experts, channels, channels out]", ", with x's channels")
    check(E > 0, "weights", weights.shape, "at least one expert")
    for name, given in (("weights", weights), ("bias", bias)):
        if given is not None:
            check_device(name, given, x.device)
            check(given.dtype == x.dtype, name, given.dtype, x.dtype, ", as x is")
    if bias is not None:
        check(bias.shape == (E, F), "bias", bias.shape, [E, F], ", weights' experts and channels out")
    _check_list("offsets", offsets, x)
    check(offsets.shape[0] == E + 1, "offsets", offsets.shape, [E + 1], ", the experts and one more")
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
    _check_list("index", index, y)
    check(index.shape[0] == y.shape[0], "index", index.shape, [y.shape[0]], ", one for each row of y")
    check(num_tokens >= 0, "num_tokens", num_tokens, "at least 0")
    if gate is not None:
        check_floating("gate", gate, 1, "[assignments]")
        check(gate.shape[0] == y.shape[0], "gate", gate.shape, [y.shape[0]], ", one for each row of y")
        check_device("gate", gate, y.device)
    return _scatter(y, index, gate, num_tokens, chosen_backend(y, backend=backend))


def chosen_backend(x: Tensor, *, backend: str = "auto") -> str:
    """Name of the backend that runs for these rows, a key of BACKENDS. Raises ValueError when it cannot run them."""
    if backend == "auto":
        best = "triton" if x.device.type == "cuda" else "cpu"
        return best if _why_not(best, x) is None else "reference"
    check(backend in BACKENDS, "backend", backend, ["auto", *BACKENDS])
    reason = _why_not(backend, x)
    if reason:
        raise ValueError(f"backend is {backend!r}; it cannot run here, since {reason}.")
    return backend


def last_backend() -> str | None:
    """Name of the backend that ran this thread's newest operation, forward or backward; None before any."""
    return getattr(_ran, "name", None)


def _check_list(name: str, x: Tensor, rows: Tensor) -> None:
    check(isinstance(x, Tensor), name, type(x).__name__, "a tensor")
    check(x.dtype == torch.int64, name, x.dtype, "torch.int64")
    check(x.ndim == 1, name, x.shape, "one dimension")
    check_device(name, x, rows.device)


def _why_not(name: str, x: Tensor) -> str | None:
    """What keeps a backend from running, in words that end a sentence; None when nothing does."""
    if name == "cpu" and x.device.type != "cpu":
        return f"x is on {x.device} and not on cpu"
    if name != "triton":
        return None
    if not _has_triton():
        return "the package 'triton' is not installed"
    if x.device.type != "cuda" and not _interpreted():
        return f"x is on {x.device} and not on cuda"
    return None if x.dtype in TRITON_DTYPES else f"x is of {x.dtype}, and the kernels take bf16, fp16 and fp32"


@torch.compiler.assume_constant_result
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@torch.compiler.assume_constant_result
def _interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU."""
    import triton

    return bool(triton.knobs.runtime.interpret)


class Backend(Protocol):
    """What a backend module offers: plain tensors in and out, dense results, no autograd."""

    def gather(self, x: Tensor, index: Tensor) -> Tensor:
        """x[index]."""

    def scatter(self, y: Tensor, index: Tensor, gate: Tensor | None, num_tokens: int) -> Tensor:
        """Sums of gate * y by token."""

    def scatter_backward(self, d_out: Tensor, y: Tensor, index: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of y and gate."""

    def linear(self, x: Tensor, weights: Tensor, bias: Tensor | None, offsets: Tensor) -> Tensor:
        """The product with each expert's weights."""

    def linear_backward(
        self, d_out: Tensor, x: Tensor, weights: Tensor, offsets: Tensor, with_bias: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, weights and bias (empty without one)."""


def _run(name: str) -> Backend:
    """The backend's module, imported when it is first asked for: triton is not everywhere."""
    _ran.name = name
    return import_module(f"mezzotint.kernels.expert_dispatch_{name}")


@torch.library.custom_op("mezzotint::gather_tokens", mutates_args=())
def _gather(x: Tensor, index: Tensor, backend: str) -> Tensor:
    return _run(backend).gather(x, index)


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
    return _run(backend).scatter(y, index, gate, num_tokens)


@_scatter.register_fake
def _(y: Tensor, index: Tensor, gate: Tensor | None, num_tokens: int, backend: str) -> Tensor:
    return y.new_empty(num_tokens, y.shape[1])


@torch.library.custom_op("mezzotint::scatter_add_backward", mutates_args=())
def _scatter_backward_op(
    d_out: Tensor, y: Tensor, index: Tensor, gate: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    return _run(backend).scatter_backward(d_out, y, index, gate)


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
    return _run(backend).linear(x, weights, bias, offsets)


@_linear.register_fake
def _(x: Tensor, weights: Tensor, bias: Tensor | None, offsets: Tensor, backend: str) -> Tensor:
    return x.new_empty(x.shape[0], weights.shape[2])


@torch.library.custom_op("mezzotint::grouped_linear_backward", mutates_args=())
def _linear_backward_op(
    d_out: Tensor, x: Tensor, weights: Tensor, offsets: Tensor, with_bias: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return _run(backend).linear_backward(d_out, x, weights, offsets, with_bias)


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
