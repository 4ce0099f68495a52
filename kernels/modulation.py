"""Norm, scale and shift as one operation: the modulation of a diffusion transformer's block (adaLN, arXiv 2212.09748
section 3.2), forward and backward.

A torch.library operation with fake and autograd registrations, so that torch.compile traces it. Which backend runs is
decided by `chosen_backend` before anything is computed; a case that it cannot do raises. Shape suffixes: B batch,
N tokens, C channels.
"""

import importlib.util
import math
import threading
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor

from mezzotint.kernels import modulation_cpu
from mezzotint.kernels.arguments import check, check_device, check_floating
from mezzotint.kernels.direct_call import may_call_directly
from mezzotint.kernels.modulation_reference import reference_norm_modulate, statistics_dtype

NORMS = ("layer", "rms")

BACKENDS = {
    "torch": "torch's own operators, one after the other: any device and floating dtype",
    "reference": "the formula written out, in fp32 or fp64",
    "cpu": "our C kernel, in bf16 and fp32",
    "triton": "our Triton kernels on CUDA, in bf16, fp16 and fp32",
}
"""Names, and what each is for. "auto" takes triton on CUDA, cpu on a CPU, and torch where those cannot run."""

TRITON_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
TRITON_CHANNELS = 16_384
"""Most channels of the Triton kernels, which hold a row in registers."""

_ran = threading.local()


def norm_modulate(
    x: Tensor, shift: Tensor, scale: Tensor, *, norm: str = "layer", eps: float = 1e-6, backend: str = "auto"
) -> Tensor:
    """norm(x) * (1 + scale) + shift, with a norm over channels that has no weights of its own.

    x: [B, N, C], floating point. On the fast backends any strides with the last dimension dense.
    shift, scale: [B, C], both of one dtype: x's, or another floating one.
    norm: "layer" (x - mean over its standard deviation) or "rms" (x over its root mean square, arXiv 1910.07467).
    eps: added to the variance or the mean square, above 0.
    backend: "auto", or one of BACKENDS by name.

    Returns [B, N, C] in x's dtype, contiguous. Arithmetic is fp32 (fp64 for fp64 in the reference), but for "torch",
    which rounds as torch's operators do. The gradients of shift and scale are summed in an order that depends on the
    shape alone: the same input gives the same bits.
    Raises ValueError naming the argument, its value and what was expected.
    """
    _check_arguments(x, shift, scale, norm, eps)
    name = chosen_backend(x, shift, scale, backend=backend)
    if name == "torch":
        _ran.name = name
        return reference_norm_modulate(x, shift, scale, norm=norm, eps=eps).to(x.dtype)
    if may_call_directly(x, shift, scale):
        _ran.name = name
        return _module(name).forward(x, shift, scale, norm, eps)[0]
    return _norm_modulate(x, shift, scale, norm, eps, name)[0]


def chosen_backend(x: Tensor, shift: Tensor, scale: Tensor, *, backend: str = "auto") -> str:
    """Name of the backend that runs for these arguments of `norm_modulate`, a key of BACKENDS.

    Raises ValueError when the one asked for cannot run them.
    """
    if backend == "auto":
        best = "triton" if x.device.type == "cuda" else "cpu"
        return best if _why_not(best, x, shift, scale) is None else "torch"
    check(backend in [*BACKENDS], "backend", backend, ["auto", *BACKENDS])
    reason = _why_not(backend, x, shift, scale)
    if reason:
        raise ValueError(f"backend is {backend!r}; it cannot run here, since {reason}.")
    return backend


def last_backend() -> str | None:
    """Name of the backend that ran the newest forward or backward pass of this thread; None before any."""
    return getattr(_ran, "name", None)


def _check_arguments(x: Tensor, shift: Tensor, scale: Tensor, norm: str, eps: float) -> None:
    check_floating("x", x, 3, "[batch, tokens, channels]")
    B, _, C = x.shape
    check(C > 0, "x", x.shape, "at least one channel")
    for name, given in (("shift", shift), ("scale", scale)):
        check_floating(name, given, 2, "[batch, channels]")
        check(given.shape == (B, C), name, given.shape, [B, C], ", x's batch and channels")
        check_device(name, given, x.device)
    check(shift.dtype == scale.dtype, "shift", shift.dtype, scale.dtype, ", as scale is")
    check(norm in NORMS, "norm", norm, "'layer' or 'rms'")
    number = isinstance(eps, (int, float)) and not isinstance(eps, bool)
    check(number and 0 < eps < math.inf, "eps", eps, "a finite number above 0")


def _why_not(name: str, x: Tensor, shift: Tensor, scale: Tensor) -> str | None:
    """What keeps a backend from running, in words that end a sentence; None when nothing does."""
    if name == "cpu":
        return modulation_cpu.why_not(x, shift, scale)
    return _why_not_triton(x, shift, scale) if name == "triton" else None


def _why_not_triton(x: Tensor, shift: Tensor, scale: Tensor) -> str | None:
    if not _has_triton():
        return "the package 'triton' is not installed"
    if x.device.type != "cuda" and not _interpreted():
        return f"x is on {x.device} and not on cuda"
    if x.dtype not in TRITON_DTYPES or scale.dtype not in TRITON_DTYPES:
        return f"x is of {x.dtype} and scale of {scale.dtype}, and the kernels take bf16, fp16 and fp32"
    if x.shape[2] > TRITON_CHANNELS:
        return f"x has {x.shape[2]} channels, and the kernels take {TRITON_CHANNELS}"
    for argument, given in (("x", x), ("shift", shift), ("scale", scale)):
        if given.stride(-1) != 1 and given.shape[-1] > 1:
            return f"{argument} has stride {given.stride(-1)} in its last dimension, and the kernels take 1"
    return None


@torch.compiler.assume_constant_result
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@torch.compiler.assume_constant_result
def _interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU."""
    import triton

    return bool(triton.knobs.runtime.interpret)


class Backend(Protocol):
    """What a backend module offers: plain tensors in and out, no autograd. See modulation_reference.py."""

    def forward(
        self, x: Tensor, shift: Tensor, scale: Tensor, norm: str, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Output [B, N, C], mean [B, N] (empty for the RMS norm) and 1 / std [B, N]."""

    def backward(
        self, d_out: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor, norm: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, shift and scale."""


def _module(name: str) -> Backend:
    """Imported when it is first asked for: triton is not everywhere."""
    return import_module(f"mezzotint.kernels.modulation_{name}")


@torch.library.custom_op("mezzotint::norm_modulate", mutates_args=())
def _norm_modulate(
    x: Tensor, shift: Tensor, scale: Tensor, norm: str, eps: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    _ran.name = backend
    return _module(backend).forward(x, shift, scale, norm, eps)


@_norm_modulate.register_fake
def _(
    x: Tensor, shift: Tensor, scale: Tensor, norm: str, eps: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    statistics = [x.new_empty(x.shape[:2], dtype=statistics_dtype(x)) for _ in range(2)]
    if norm == "rms":
        statistics[0] = x.new_empty(0, dtype=statistics_dtype(x))
    return x.new_empty(x.shape), statistics[0], statistics[1]


@torch.library.custom_op("mezzotint::norm_modulate_backward", mutates_args=())
def _norm_modulate_backward(
    d_out: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor, norm: str, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    _ran.name = backend
    return _module(backend).backward(d_out, x, scale, mean, rstd, norm)


@_norm_modulate_backward.register_fake
def _(
    d_out: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor, norm: str, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), scale.new_empty(scale.shape), scale.new_empty(scale.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, _, scale, norm, _, backend = inputs
    _, mean, rstd = output
    ctx.norm, ctx.backend = norm, backend
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, scale, mean, rstd)


def _backward(ctx: Any, d_out: Tensor | None, d_mean: None, d_rstd: None) -> tuple[Tensor | None, ...]:
    if d_out is None:  # nothing came from behind
        return (None,) * 6
    gradients = _norm_modulate_backward(d_out, *ctx.saved_tensors, ctx.norm, ctx.backend)
    return *gradients, None, None, None


_norm_modulate.register_autograd(_backward, setup_context=_setup_context)
