"""What the Triton kernels of attention take, packed in named tuples: tensors with their strides, lists, token counts.

Triton hands a tuple to a kernel field by field. A tensor of more than one head has its strides in units of 16 bytes
(triton_tiles.py says why), so what is not aligned to them is copied first; then one compiled form of a kernel serves
every tensor. Shape suffixes: B batch, H heads, N tokens, D channels.
"""

from typing import NamedTuple

from torch import Tensor

from mezzotint.kernels.layout import BlockLayout
from mezzotint.kernels.triton_configs import VECTOR_BYTES

#: Rows of a tile are found by 32-bit arithmetic: a tile has at most 128 of them, so this many elements from row to row.
_WIDEST_ROW = 2**31 // 128


class Operand(NamedTuple):
    """A tensor [B, H, N, ...] or [B, H, N]; strides are 0 where the size is 1, so that it broadcasts.

    Strides of q, k, v and d_out are in units of 16 bytes, those of the others in elements. ptr None: not given.
    """

    ptr: Tensor | None
    stride_b: int
    stride_h: int
    stride_n: int


class Lists(NamedTuple):
    """A layout's lists, or their transpose: counts [Bx, Hx, blocks] and indices [Bx, Hx, blocks, M].

    mask_ptr, beside the indices, names a row of bits_ptr [P, rows, words] or is -1; both are None without masks.
    """

    num_ptr: Tensor
    idx_ptr: Tensor
    mask_ptr: Tensor | None
    bits_ptr: Tensor | None
    num_stride_b: int
    num_stride_h: int
    idx_stride_b: int
    idx_stride_h: int
    idx_stride_n: int


class Tokens(NamedTuple):
    """Counts of tokens, and int32 [blocks] valid ones of each block, or None where they end with the count."""

    num_q: int
    num_k: int
    q_len_ptr: Tensor | None
    k_len_ptr: Tensor | None


def vector_operand(x: Tensor) -> Operand:
    """q, k, v or d_out [B, H, N, D] with its strides in units of 16 bytes; copied where it does not start or step so.

    Rows that are 2**24 elements apart or more are copied, too.
    """
    unit = VECTOR_BYTES // x.element_size()
    strides = _strides(x)
    if x.stride(-1) != 1 or x.data_ptr() % VECTOR_BYTES or any(s % unit for s in strides) or strides[2] >= _WIDEST_ROW:
        padded = x.new_empty(*x.shape[:3], -(-x.shape[3] // unit) * unit)
        x = padded[..., : x.shape[3]].copy_(x)
        strides = _strides(x)
    return Operand(x, *(stride // unit for stride in strides))


def plain_operand(x: Tensor | None) -> Operand:
    """A tensor [B or 1, H or 1, N] with its strides in elements; None gives one that kernels leave out."""
    return Operand(None, 0, 0, 0) if x is None else Operand(x, *_strides(x))


def list_operand(num: Tensor, idx: Tensor, mask_idx: Tensor | None, bits: Tensor | None) -> Lists:
    """Lists as the kernels take them. mask_idx and bits are both given or both None."""
    num, idx = num.contiguous(), idx.contiguous()
    mask_idx = None if mask_idx is None else mask_idx.contiguous()
    bits = None if bits is None else bits.contiguous()
    return Lists(num, idx, mask_idx, bits, *_strides(num)[:2], *_strides(idx))


def token_operand(layout: BlockLayout) -> Tokens:
    """A layout's counts of tokens."""
    q_len, k_len = (x if x is None else x.contiguous() for x in (layout.q_len, layout.k_len))
    return Tokens(layout.num_q, layout.num_k, q_len, k_len)


def _strides(x: Tensor) -> tuple[int, ...]:
    """Of the first three dimensions; 0 where the size is 1."""
    return tuple(s if size > 1 else 0 for s, size in zip(x.stride()[:3], x.shape[:3], strict=True))
