"""Which backend computes block-sparse attention. Decided from the arguments alone, before anything runs."""

from importlib import import_module
from typing import Protocol

import torch
from torch import Tensor
from torch.compiler import is_compiling

from mezzotint.kernels.cpu_dispatch import prefers_native
from mezzotint.kernels.layout import BlockLayout
from mezzotint.kernels.native_build import why_not_native

BACKENDS = {
    "reference": "explicit scores with a dense mask: any device and dtype, memory in N * M",
    "cpu": "our C kernel, in bf16 and fp32",
    "cpu-torch": "kept blocks gathered for torch's own attention: a CPU without a C compiler, or fp16",
    "sdpa": "torch's own attention on a CPU, for layouts that keep every pair",
    "triton": "our Triton kernels on CUDA",
}
"""Names, and what each is for."""

_MODULES = {"reference": "reference_backend", "cpu": "cpu_attention", "cpu-torch": "cpu_torch_attention",
            "sdpa": "sdpa_attention", "triton": "triton_attention"}


class Backend(Protocol):
    """What a backend module offers: plain tensors in and out, no autograd. See block_sparse.py for the shapes."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, scale: float, key_bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Output [B, H, N, V] and lse fp32 [B, H, N]."""

    def backward(
        self, d_out: Tensor, d_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        layout: BlockLayout, scale: float, key_bias: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Gradients of q, k, v and key_bias."""


def backend_module(name: str) -> Backend:
    """The module of a backend, imported when it is first asked for."""
    return import_module(f"mezzotint.kernels.{_MODULES[name]}")


def chosen_backend(
    q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, *, key_bias: Tensor | None = None, return_lse: bool = False,
    backend: str = "auto",
) -> str:
    """Name of the backend that runs for these arguments of `block_sparse_attention`.

    Raises ValueError when the one asked for cannot run them.
    """
    plain = key_bias is None and not return_lse
    if backend == "auto":
        return _best(q, k, v, layout, plain)
    if backend not in [*BACKENDS]:
        raise ValueError(f"backend is {backend!r}; expected auto, {', '.join(BACKENDS)}.")
    reason = _why_not(backend, q, layout, plain)
    if reason:
        raise ValueError(f"backend is {backend!r}; it cannot run here, since {reason}.")
    return backend


def _best(q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, plain: bool) -> str:
    if q.dtype == torch.float64:
        return "reference"
    if q.is_cuda:
        return "triton"
    if not q.is_cpu:  # device.type would be asked for in words, which costs ten microseconds
        raise ValueError(f"q is on {q.device}; expected cpu or cuda, or backend='reference' for any other.")
    needs_grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    native = _why_not_native(q) is None
    keeps_all = _why_not_sdpa(layout, plain) is None
    if native and not (keeps_all and not prefers_native(q, k, needs_grad)):
        return "cpu"
    return "sdpa" if keeps_all else "cpu-torch"


def _why_not(name: str, q: Tensor, layout: BlockLayout, plain: bool) -> str | None:
    """What keeps a backend from running, in words that end a sentence; None when nothing does."""
    if name == "triton":
        return None if q.is_cuda or _interpreted() else f"q is on {q.device} and not on cuda"
    if name != "reference" and not q.is_cpu:
        return f"q is on {q.device} and not on cpu"
    if name != "reference" and q.dtype == torch.float64:
        return "q is of torch.float64, which only the reference takes"
    if name == "cpu":
        return _why_not_native(q)
    if name == "sdpa":
        return _why_not_sdpa(layout, plain)
    return None


def _why_not_native(q: Tensor) -> str | None:
    if q.dtype not in (torch.bfloat16, torch.float32):
        return f"q is of {q.dtype}, and the C kernel takes bf16 and fp32"
    return why_not_native()


def _why_not_sdpa(layout: BlockLayout, plain: bool) -> str | None:
    if not plain:
        return "torch's kernel has neither a key_bias nor a gradient through lse"
    # While torch.compile traces, the lists hold no values that could be looked at.
    if is_compiling() or not layout.keeps_every_pair():
        return "the layout does not keep every pair"
    return None


def _interpreted() -> bool:
    import os

    return os.environ.get("TRITON_INTERPRET") == "1"
