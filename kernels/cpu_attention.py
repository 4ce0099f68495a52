"""Attention on a CPU in our own C kernels (native/): block-sparse by a BlockLayout, or dense.

Shape suffixes: B batch, H query heads, G key/value heads, N query tokens, M key tokens, D head channels, V value
channels. No autograd in here: forward and backward are two plain functions, as in every backend.
"""

import struct
from typing import NamedTuple

import torch
from torch import Tensor

from mezzotint.kernels.attention_check import check_arguments, check_tensors
from mezzotint.kernels.layout import BlockLayout
from mezzotint.kernels.native_build import native_library
from mezzotint.kernels.native_call import ELEMENTS, call_native, level
from mezzotint.kernels.native_team import team_address
from mezzotint.kernels.strides import broadcast_strides

DENSE_BLOCK = 64  # queries of one tile
SMALLEST_PART = 256  # queries (times heads) for which a key/value head is packed once more
SERIAL_FLOPS = 2e6  # below this, waking a second thread costs more than it saves

_CALL = struct.Struct("=51qd")  # struct attention_call of native/call.h


class _Lists(NamedTuple):
    """The lists of a layout as the C code reads them: addresses and strides. Dense attention has none."""

    block_q: int
    block_k: int
    pointers: tuple[int, ...]  # counts, indices, lengths of queries and of keys, masks beside the indices, their bits
    strides: tuple[int, ...]  # batch and head of the counts; batch, head and row of the indices and of their masks
    keep: tuple[Tensor | None, ...]  # what the addresses point into


def available() -> bool:
    """Whether the kernels are built, or can be built, on this machine. The first call builds them."""
    return native_library() is not None


def forward(
    q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, scale: float, key_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """softmax(scale q k^T + key_bias) v over the pairs that the layout keeps.

    q [B, H, N, D], k [B, G, M, D], v [B, G, M, V], fp32 or bf16, last dimension dense; key_bias fp32 [B or 1, H or 1,
    M]. Returns out [B, H, N, V] in q's dtype and lse fp32 [B, H, N]; a query without a key gives 0 and -inf.
    Raises ValueError for other dtypes, devices or strides, and where the kernels cannot be built.
    """
    check_arguments(q, k, v, layout, key_bias, dtypes=tuple(ELEMENTS), device="cpu")
    return _forward(q, k, v, _lists_of(layout), scale, key_bias)


def backward(
    d_out: Tensor,
    d_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    layout: BlockLayout,
    scale: float,
    key_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of `forward` for q, k, v and key_bias (None where there is none), in their shapes.

    The same inputs and number of threads give the same bits. Raises ValueError as `forward` does.
    """
    check_arguments(q, k, v, layout, key_bias, dtypes=tuple(ELEMENTS), device="cpu")
    return _backward(d_out, d_lse, q, k, v, out, lse, _lists_of(layout), scale, key_bias)


def dense_forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Ordinary attention, every query with every key: `forward` without a layout."""
    check_tensors(q, k, v, tuple(ELEMENTS), "cpu")
    return _forward(q, k, v, _dense_lists(k.shape[2]), scale, None)


def dense_backward(
    d_out: Tensor, d_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `dense_forward` for q, k and v."""
    check_tensors(q, k, v, tuple(ELEMENTS), "cpu")
    return _backward(d_out, d_lse, q, k, v, out, lse, _dense_lists(k.shape[2]), scale, None)[:3]


def _forward(
    q: Tensor, k: Tensor, v: Tensor, lists: _Lists, scale: float, key_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    B, H, N, _ = q.shape
    out = torch.empty((B, H, N, v.shape[3]), dtype=q.dtype)
    lse = torch.empty((B, H, N), dtype=torch.float32)
    if k.shape[2] == 0:
        return out.zero_(), lse.fill_(-torch.inf)
    if lse.numel() == 0:
        return out, lse
    results = (out.data_ptr(), lse.data_ptr(), 0, 0, 0, 0, 0)
    _run("attention_forward", q, k, v, None, results, lists, scale, key_bias, _parts(q, k))
    return out, lse


def _backward(
    d_out: Tensor,
    d_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    lists: _Lists,
    scale: float,
    key_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    if q.numel() == 0 or k.numel() == 0 or v.numel() == 0:
        return torch.zeros(q.shape, dtype=q.dtype), torch.zeros_like(k), torch.zeros_like(v), _zeros_like(key_bias)
    parts = _parts(q, k)
    sums = q.dtype if parts == 1 else torch.float32
    dq = torch.empty(q.shape, dtype=q.dtype)
    dk, dv = (torch.empty((parts, *x.shape), dtype=sums) for x in (k, v))
    d_bias = None if key_bias is None else torch.zeros((parts, q.shape[0], q.shape[1], k.shape[2]))
    d_out, out, lse = _dense_rows(d_out, q.dtype), out.contiguous(), lse.contiguous()
    d_lse = None if d_lse is None else d_lse.float().contiguous()
    results = (out, lse, d_lse, dq, dk, dv, d_bias)
    addresses = tuple(0 if x is None else x.data_ptr() for x in results)
    _run("attention_backward", q, k, v, d_out, addresses, lists, scale, key_bias, parts)
    dk, dv = (x[0] if parts == 1 else x.sum(0).to(q.dtype) for x in (dk, dv))
    return dq, dk, dv, _sum_to(d_bias, key_bias)


def _run(
    function: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    d_out: Tensor | None,
    results: tuple[int, ...],
    lists: _Lists,
    scale: float,
    key_bias: Tensor | None,
    parts: int,
) -> None:
    B, H, N, D = q.shape
    _, G, M, V = v.shape
    key_bias = None if key_bias is None else key_bias.contiguous()
    threads = torch.get_num_threads() if 4.0 * B * H * N * M * D > SERIAL_FLOPS else 1
    call_native(
        function,
        _CALL,
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        0 if d_out is None else d_out.data_ptr(),
        *results,
        0 if key_bias is None else key_bias.data_ptr(),
        *lists.pointers,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *((0, 0, 0) if d_out is None else d_out.stride()[:3]),
        *((0, 0) if key_bias is None else broadcast_strides(key_bias, 2)),
        *lists.strides,
        *(B, H, G, N, M, D, V),
        *(lists.block_q, lists.block_k, parts, threads, ELEMENTS[q.dtype], level(), team_address()),
        scale,
    )


def _lists_of(layout: BlockLayout) -> _Lists:
    num, idx = layout.kv_num.contiguous(), layout.kv_idx.contiguous()
    rest = (layout.q_len, layout.k_len, layout.mask_idx, layout.mask_bits)
    strides = (*broadcast_strides(num, 2), *broadcast_strides(idx, 2), idx.stride(2))
    keep = (num, idx, *(x if x is None else x.contiguous() for x in rest))
    return _Lists(layout.block_q, layout.block_k, tuple(0 if x is None else x.data_ptr() for x in keep), strides, keep)


def _dense_lists(num_k: int) -> _Lists:
    """One block holds every key; the pair product reads them two at a time, so it is rounded up."""
    return _Lists(DENSE_BLOCK, max(16, -(-num_k // 16) * 16), (0,) * 6, (0,) * 5, ())


def _parts(q: Tensor, k: Tensor) -> int:
    """Units of work that each key/value head is split into, so that all threads have an equal share."""
    threads, heads = torch.get_num_threads(), k.shape[0] * k.shape[1]
    queries = q.shape[1] // max(1, k.shape[1]) * q.shape[2]
    parts = 1
    while heads * parts % threads and heads * parts < 4 * threads and queries >= 2 * parts * SMALLEST_PART:
        parts *= 2
    return parts


def _dense_rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """autograd hands over expanded and transposed gradients."""
    return x if x.dtype == dtype and x.stride(3) == 1 else x.to(dtype).contiguous()


def _sum_to(d_bias: Tensor | None, key_bias: Tensor | None) -> Tensor | None:
    """[parts, B, H, M] to key_bias's shape."""
    if d_bias is None or key_bias is None:
        return None
    return d_bias.sum(0).sum_to_size(key_bias.shape)


def _zeros_like(key_bias: Tensor | None) -> Tensor | None:
    return None if key_bias is None else torch.zeros_like(key_bias)
