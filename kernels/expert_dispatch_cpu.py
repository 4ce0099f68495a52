"""Expert dispatch on a CPU: rows come back to their tokens in our own C kernels (native/experts.c); gathering them, and
the products, are torch's, which are as fast as any.

Shape suffixes: T tokens, A assignments, C channels. No autograd in here.
"""

import ctypes
import struct

import torch
from torch import Tensor

from mezzotint.kernels.expert_arguments import index_error
from mezzotint.kernels.expert_dispatch_torch import gather, linear, linear_backward
from mezzotint.kernels.native_build import why_not_native
from mezzotint.kernels.native_call import ELEMENTS, call_native, level
from mezzotint.kernels.native_team import team_address

__all__ = ["gather", "linear", "linear_backward", "scatter", "scatter_backward", "why_not"]

SERIAL_ELEMENTS = 32_768
"""Elements of the assignments' rows for which one thread is enough: waking a second one costs more than it saves."""

_CALL = struct.Struct("=16q")  # struct dispatch_call of native/experts.c


def why_not(x: Tensor) -> str | None:
    """What keeps this backend from running, in words that end a sentence; None when nothing does."""
    if x.device.type != "cpu":
        return f"x is on {x.device} and not on cpu"
    if x.dtype not in ELEMENTS:
        return f"x is of {x.dtype}, and the C kernels take bf16 and fp32"
    return why_not_native()


def scatter(y: Tensor, index: Tensor, gate: Tensor | None, num_tokens: int) -> Tensor:
    """Sums of gate [A] * y [A, C] by token: [T, C]; y is fp32 or bf16, sums are fp32, in the order of assignments."""
    out = y.new_empty(num_tokens, y.shape[1])
    y, index = _dense(y), index.contiguous()
    gate = None if gate is None else gate.float().contiguous()
    _run("experts_scatter", (y, None, index, gate, out, None), num_tokens)
    return out


def scatter_backward(d_out: Tensor, y: Tensor, index: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of y [A, C] and gate [A]: gate * d_out[index], and the inner products of y and d_out[index]."""
    dy, d_gate = y.new_empty(y.shape), gate.new_empty(gate.shape, dtype=torch.float32)
    d_out, y, index, factors = _dense(d_out.to(y.dtype)), _dense(y), index.contiguous(), gate.float().contiguous()
    _run("experts_scatter_backward", (d_out, y, index, factors, dy, d_gate), d_out.shape[0])
    return dy, d_gate.to(gate.dtype)


def _run(function: str, tensors: tuple[Tensor | None, ...], num_tokens: int) -> None:
    """tensors: in the order of struct dispatch_call. The kernel looks at the values of the index."""
    rows, y, index = tensors[:3]
    assert rows is not None
    assert index is not None
    A, C = index.shape[0], rows.shape[1]
    refused = (ctypes.c_int64 * 3)()
    call_native(
        function,
        _CALL,
        *[0 if tensor is None else tensor.data_ptr() for tensor in tensors],
        *(ctypes.addressof(refused), team_address()),
        *(rows.stride(0), 0 if y is None else y.stride(0)),
        *(num_tokens, A, C),
        torch.get_num_threads() if A * C > SERIAL_ELEMENTS else 1,
        *(ELEMENTS[rows.dtype], level()),
    )
    if refused[0]:
        raise index_error(refused[1], refused[2], num_tokens)


def _dense(rows: Tensor) -> Tensor:
    """Rows whose channels lie side by side: autograd hands over expanded and transposed gradients, too."""
    return rows if rows.stride(1) == 1 else rows.contiguous()
