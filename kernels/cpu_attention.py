"""Attention on a CPU in our own C kernels (native/): block-sparse by a BlockLayout, or dense.

Shape suffixes: B batch, H query heads, G key/value heads, N query tokens, M key tokens, D head channels, V value
channels. No autograd in here: forward and backward are two plain functions, as in every backend.
"""

import struct
from typing import NamedTuple

import torch
from torch import Tensor

from mezzotint.kernels.layout import BlockLayout
from mezzotint.kernels.native_build import native_library, why_not_native
from mezzotint.kernels.native_team import team_address

LEVELS = ("generic", "avx2", "avx512", "avx512bf16")
"""Instruction sets, by the number that native/attention.c gives them."""

DTYPES = {torch.float32: 0, torch.bfloat16: 1}
DENSE_BLOCK = 64  # queries of one tile
SMALLEST_PART = 256  # queries (times heads) for which a key/value head is packed once more
SERIAL_FLOPS = 2e6  # below this, waking a second thread costs more than it saves

_CALL = struct.Struct("=49qd")  # struct attention_call of native/call.h


class _Lists(NamedTuple):
    """The lists of a layout as the C code reads them: addresses and strides. Dense attention has none."""

    block_q: int
    block_k: int
    pointers: tuple[int, ...]  # counts, indices, lengths of queries and of keys
    strides: tuple[int, ...]  # batch and head of the counts; batch, head and row of the indices
    keep: tuple[Tensor, ...]  # what the addresses point into


def available() -> bool:
    """Whether the kernels are built, or can be built, on this machine. The first call builds them."""
    return native_library() is not None


def instruction_set() -> str:
    """The best instruction set of this machine that the kernels know, one of LEVELS. Raises ValueError without them."""
    return LEVELS[_level()]


def forward(
    q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, scale: float, key_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """softmax(scale q k^T + key_bias) v over the pairs that the layout keeps.

    q [B, H, N, D], k [B, G, M, D], v [B, G, M, V], fp32 or bf16, last dimension dense; key_bias fp32 [B or 1, H or 1,
    M]. Returns out [B, H, N, V] in q's dtype and lse fp32 [B, H, N]; a query without a key gives 0 and -inf.
    Raises ValueError for other dtypes, devices or strides, and where the kernels cannot be built.
    """
    return _forward(q, k, v, _lists_of(q, k, layout), scale, key_bias)


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
    return _backward(d_out, d_lse, q, k, v, out, lse, _lists_of(q, k, layout), scale, key_bias)


def dense_forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Ordinary attention, every query with every key: `forward` without a layout."""
    return _forward(q, k, v, _dense_lists(k.shape[2]), scale, None)


def dense_backward(
    d_out: Tensor, d_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `dense_forward` for q, k and v."""
    return _backward(d_out, d_lse, q, k, v, out, lse, _dense_lists(k.shape[2]), scale, None)[:3]


def _forward(
    q: Tensor, k: Tensor, v: Tensor, lists: _Lists, scale: float, key_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    _check(q, k, v, key_bias)
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
    _check(q, k, v, key_bias)
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
    library = native_library()
    if library is None:
        raise ValueError(f"the native CPU attention was asked for; expected another backend, since {why_not_native()}")
    B, H, N, D = q.shape
    _, G, M, V = v.shape
    threads = torch.get_num_threads() if 4.0 * B * H * N * M * D > SERIAL_FLOPS else 1
    call = _CALL.pack(
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
        *_bias_strides(key_bias),
        *lists.strides,
        *(B, H, G, N, M, D, V),
        *(lists.block_q, lists.block_k, parts, threads, DTYPES[q.dtype], _level(), team_address()),
        scale,
    )
    status = getattr(library, function)(call)
    if status == -1:
        raise MemoryError(f"{function} ran out of memory for {M} keys of {D} channels")
    if status:
        raise ValueError(f"instruction set is number {_level()}; expected one that this machine has, see LEVELS")


def _check(q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None) -> None:
    """The C code reads what it is told to read, so shapes are checked here as well as in the public operation."""
    if q.dtype not in DTYPES:
        raise ValueError(f"q.dtype is {q.dtype}; expected torch.float32 or torch.bfloat16 for the native CPU attention")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dtype != q.dtype or x.device.type != "cpu":
            raise ValueError(f"{name} is {x.dtype} on {x.device}; expected {q.dtype}, as q is, on the CPU")
        if x.stride(3) != 1 and x.shape[3] > 1:
            raise ValueError(f"{name} has the stride {x.stride(3)} in its last dimension; expected 1")
    (B, H, _, D), (_, G, M, _) = q.shape, k.shape
    if k.shape[0] != B or k.shape[3] != D or G < 1 or H % G:
        raise ValueError(f"k has the shape {tuple(k.shape)}; expected [{B}, a divisor of {H}, any, {D}]")
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(f"v has the shape {tuple(v.shape)}; expected [{B}, {G}, {M}, any], as k has")
    if key_bias is not None:
        _check_bias(key_bias, (B, H, M))


def _check_bias(key_bias: Tensor, full: tuple[int, int, int]) -> None:
    shape = tuple(key_bias.shape)
    if len(shape) != 3 or shape[2] != full[2] or any(shape[i] not in (1, full[i]) for i in (0, 1)):
        raise ValueError(f"key_bias has the shape {shape}; expected {full}, of which the first two may be 1")
    if key_bias.dtype != torch.float32 or (key_bias.stride(2) != 1 and shape[2] > 1):
        raise ValueError(f"key_bias is {key_bias.dtype} with strides {key_bias.stride()}; expected fp32, dense tokens")


def _lists_of(q: Tensor, k: Tensor, layout: BlockLayout) -> _Lists:
    if (layout.num_q, layout.num_k) != (q.shape[2], k.shape[2]):
        raise ValueError(f"layout has {layout.num_q} x {layout.num_k} tokens; expected {q.shape[2]} x {k.shape[2]}")
    num, idx = layout.kv_num, layout.kv_idx
    for i, size in ((0, q.shape[0]), (1, q.shape[1])):
        if num.shape[i] not in (1, size):
            raise ValueError(f"layout.kv_num has the shape {tuple(num.shape)}; expected 1 or {size} in dimension {i}")
    if num.stride(2) != 1 or idx.stride(3) != 1:
        num, idx = num.contiguous(), idx.contiguous()
    lengths = [x if x is None else x.contiguous() for x in (layout.q_len, layout.k_len)]
    strides = (
        *(0 if num.shape[i] == 1 else num.stride(i) for i in (0, 1)),
        *(0 if idx.shape[i] == 1 else idx.stride(i) for i in (0, 1)),
        idx.stride(2),
    )
    pointers = tuple(0 if x is None else x.data_ptr() for x in (num, idx, *lengths))
    keep = tuple(x for x in (num, idx, *lengths) if x is not None)
    return _Lists(layout.block_q, layout.block_k, pointers, strides, keep)


def _dense_lists(num_k: int) -> _Lists:
    """One block holds every key; the pair product reads them two at a time, so it is rounded up."""
    return _Lists(DENSE_BLOCK, max(16, -(-num_k // 16) * 16), (0, 0, 0, 0), (0, 0, 0, 0, 0), ())


def _bias_strides(key_bias: Tensor | None) -> tuple[int, int]:
    if key_bias is None:
        return 0, 0
    batch, head = (0 if key_bias.shape[i] == 1 else key_bias.stride(i) for i in (0, 1))
    return batch, head


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


_forced_level: int | None = None  # tests run every level that the machine has
_best_level: int | None = None


def _level() -> int:
    global _best_level
    if _best_level is None:
        library = native_library()
        if library is None:
            raise ValueError("instruction_set() was asked for; expected the C kernels, which are not built here")
        _best_level = int(library.attention_level())
    return _best_level if _forced_level is None else _forced_level
