"""Which backend runs expert dispatch, and what a backend offers.

Shape suffixes: T tokens, A assignments, E experts, C channels in, F channels out.
"""

import importlib.util
import threading
from importlib import import_module
from typing import Protocol

import torch
from torch import Tensor

from mezzotint.kernels import expert_dispatch_cpu
from mezzotint.kernels.arguments import check

BACKENDS = {
    "reference": "explicit, with masks: any device and floating dtype, each expert's product with every row",
    "torch": "torch's own operators on each expert's rows, on a CPU, in any floating dtype",
    "cpu": "our C kernels around torch's products, on a CPU, in bf16 and fp32",
    "triton": "our Triton kernels on CUDA, in bf16, fp16 and fp32",
}
"""Names, and what each is for. "auto" takes triton on CUDA; cpu on a CPU, or torch where that cannot run; and the
reference elsewhere."""

PREFERRED = {"cuda": ("triton",), "cpu": ("cpu", "torch")}
TRITON_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

_ran = threading.local()


def chosen_backend(x: Tensor, *, backend: str = "auto") -> str:
    """Name of the backend that runs for these rows, a key of BACKENDS. Raises ValueError when it cannot run them."""
    if backend == "auto":
        for name in PREFERRED.get(x.device.type, ()):
            if _why_not(name, x) is None:
                return name
        return "reference"
    check(backend in [*BACKENDS], "backend", backend, ["auto", *BACKENDS])
    reason = _why_not(backend, x)
    if reason:
        raise ValueError(f"backend is {backend!r}; it cannot run here, since {reason}.")
    return backend


def last_backend() -> str | None:
    """Name of the backend that ran this thread's newest operation, forward or backward; None before any."""
    return getattr(_ran, "name", None)


def _why_not(name: str, x: Tensor) -> str | None:
    """What keeps a backend from running, in words that end a sentence; None when nothing does."""
    if name == "cpu":
        return expert_dispatch_cpu.why_not(x)
    if name == "torch" and x.device.type != "cpu":
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


def running(name: str) -> Backend:
    """The backend's module, which is from now on this thread's newest; imported when it is first asked for, since
    triton is not everywhere."""
    _ran.name = name
    return import_module(f"mezzotint.kernels.expert_dispatch_{name}")
