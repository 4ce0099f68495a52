"""Validation of block layouts: every error names the argument, its value and what was expected.

Shape suffixes: Bx batch or 1, Hx query heads or 1, NQ and NK blocks of queries and keys, M list width, P bit masks,
W 32-bit words of a row of a block.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mezzotint.kernels.arguments import is_whole
from mezzotint.kernels.layout_conversion import whole_lengths
from mezzotint.kernels.layout_masks import WORD, num_words

if TYPE_CHECKING:
    from mezzotint.kernels.layout import BlockLayout

BLOCK_SIZES = (16, 32, 64, 128)


def check_fields(layout: "BlockLayout") -> None:
    """Refuse sizes, shapes, dtypes and devices that do not belong together. Reads nothing back from the device."""
    blocks = (layout.block_q, layout.block_k)
    check_sizes(*blocks, layout.num_q, layout.num_k)
    check_tensor("kv_num", layout.kv_num, torch.int32, (None, None, layout.num_q_blocks))
    check_tensor("kv_idx", layout.kv_idx, torch.int32, (*layout.kv_num.shape, None))
    check_device("kv_idx", layout.kv_idx, layout.device)
    lengths = (("q_len", layout.q_len, layout.num_q_blocks), ("k_len", layout.k_len, layout.num_k_blocks))
    for name, length, count in lengths:
        if length is not None:
            check_tensor(name, length, torch.int32, (count,))
            check_device(name, length, layout.device)
    check_mask_shapes(layout.mask_idx, layout.mask_bits, layout.kv_idx, blocks)
    check_order_tensors(layout.perm, layout.inv_perm, layout.num_q, layout.num_k, layout.device)


def check_values(layout: "BlockLayout") -> None:
    """Refuse lists, valid tokens, bit masks and orders with values that they cannot have; reads them back."""
    if layout.q_len is not None:
        check_lengths("q_len", layout.q_len, whole_lengths(layout.num_q, layout.block_q, layout.device))
    if layout.k_len is not None:
        check_lengths("k_len", layout.k_len, whole_lengths(layout.num_k, layout.block_k, layout.device))
    check_lists(layout.kv_num, layout.kv_idx, layout.num_k_blocks)
    if layout.mask_idx is not None and layout.mask_bits is not None:
        check_masks(layout.mask_idx, layout.mask_bits, layout.listed(), layout.block_k)
    if layout.perm is not None and layout.inv_perm is not None:
        check_order(layout.perm, layout.inv_perm)


def check_width(width: object) -> None:
    """Refuse a length of the longest list that is no number above 0; None is one that is not known."""
    if width is not None and not (is_whole(width) and width >= 1):
        raise ValueError(f"width is {width!r}; expected a number of blocks, at least 1, or None")


def check_sizes(block_q: int, block_k: int, num_q: int, num_k: int) -> None:
    """Refuse block sizes other than 16, 32, 64 and 128, and token counts below 1."""
    for name, value in (("block_q", block_q), ("block_k", block_k)):
        if not (is_whole(value) and value in BLOCK_SIZES):
            raise ValueError(f"{name} is {value!r}; expected one of {BLOCK_SIZES}")
    for name, value in (("num_q", num_q), ("num_k", num_k)):
        if not (is_whole(value) and value >= 1):
            raise ValueError(f"{name} is {value!r}; expected a number of tokens, at least 1")


def check_tensor(name: str, value: object, dtype: torch.dtype, shape: tuple[int | None, ...]) -> None:
    """Refuse what is no tensor of this dtype and shape; None in `shape` stands for any size of at least 1."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} is a {type(value).__name__}; expected a tensor of {dtype}")
    if value.dtype != dtype:
        raise ValueError(f"{name} has dtype {value.dtype}; expected {dtype}")
    fits = value.dim() == len(shape) and all(
        got == want if want is not None else got >= 1 for got, want in zip(value.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} has shape {list(value.shape)}; expected [{wanted}]")


def check_device(name: str, value: Tensor, device: torch.device) -> None:
    """Refuse a tensor that lies elsewhere than the layout's lists."""
    if value.device != device:
        raise ValueError(f"{name} is on {value.device}; expected {device}, where kv_num is")


def check_lists(kv_num: Tensor, kv_idx: Tensor, num_k_blocks: int) -> None:
    """Refuse counts outside 0..M, and listed indices that are out of range, unsorted or repeated.

    kv_num int32 [Bx, Hx, NQ], kv_idx int32 [Bx, Hx, NQ, M]. Reads one flag back from the device.
    """
    width = kv_idx.shape[-1]
    bad_num = (kv_num < 0) | (kv_num > width)
    listed = torch.arange(width, device=kv_num.device) < kv_num[..., None]
    bad_range = listed & ((kv_idx < 0) | (kv_idx >= num_k_blocks))
    bad_order = listed[..., 1:] & (kv_idx[..., 1:] <= kv_idx[..., :-1])
    if not bool(bad_num.any() | bad_range.any() | bad_order.any()):
        return
    if bad_num.any():
        at = _first(bad_num)
        raise ValueError(f"kv_num{list(at)} is {int(kv_num[at])}; expected 0 to {width}, the width of kv_idx")
    if bad_range.any():
        at = _first(bad_range)
        raise ValueError(f"kv_idx{list(at)} is {int(kv_idx[at])}; expected 0 to {num_k_blocks - 1}, a block of keys")
    *row, column = _first(bad_order)
    before, after = kv_idx[tuple(row)][column : column + 2].tolist()
    fault = "repeats its neighbour" if before == after else "is not sorted"
    raise ValueError(f"kv_idx{row} {fault}: {after} follows {before}; expected strictly ascending block indices")


def check_lengths(name: str, lengths: Tensor, whole: Tensor) -> None:
    """Refuse valid-token counts below 0 or above the tokens that the block has (`whole`, same shape)."""
    bad = (lengths < 0) | (lengths > whole)
    if bool(bad.any()):
        at = _first(bad)
        raise ValueError(f"{name}{list(at)} is {int(lengths[at])}; expected 0 to {int(whole[at])}, the block's tokens")


def check_mask_shapes(
    mask_idx: Tensor | None, mask_bits: Tensor | None, kv_idx: Tensor, blocks: tuple[int, int]
) -> None:
    """Refuse bit masks of other shapes, dtypes or devices than the lists need, and one of the two without the other."""
    if mask_idx is None and mask_bits is None:
        return
    for name, value, other in (("mask_idx", mask_idx, "mask_bits"), ("mask_bits", mask_bits, "mask_idx")):
        if value is None:
            raise ValueError(f"{name} is None; expected a tensor, since {other} is given")
    check_tensor("mask_idx", mask_idx, torch.int32, tuple(kv_idx.shape))
    check_tensor("mask_bits", mask_bits, torch.int32, (None, blocks[0], num_words(blocks[1])))
    for name, value in (("mask_idx", mask_idx), ("mask_bits", mask_bits)):
        if value is not None:  # None is refused above; the type checker does not know
            check_device(name, value, kv_idx.device)


def check_masks(mask_idx: Tensor, mask_bits: Tensor, listed: Tensor, block_k: int) -> None:
    """Refuse listed entries that name no mask, and bits past the end of a block.

    mask_idx int32 and listed bool [Bx, Hx, NQ, M], mask_bits int32 [P, block_q, W].
    """
    bad = listed & ((mask_idx < -1) | (mask_idx >= len(mask_bits)))
    if bool(bad.any()):
        at = _first(bad)
        known = f"-1 to {len(mask_bits) - 1}, whole or a row of mask_bits"
        raise ValueError(f"mask_idx{list(at)} is {int(mask_idx[at])}; expected {known}")
    spare = num_words(block_k) * WORD - block_k
    if not spare:
        return
    past = mask_bits[..., -1] >> (WORD - spare) != 0
    if bool(past.any()):
        at = (*_first(past), mask_bits.shape[-1] - 1)
        value = int(mask_bits[at]) % 2**WORD
        raise ValueError(f"mask_bits{list(at)} is {value:#x}; expected no bit past the block's {block_k} keys")


def check_order_tensors(
    perm: Tensor | None, inv_perm: Tensor | None, num_q: int, num_k: int, device: torch.device
) -> None:
    """Refuse a token order of other shapes, dtypes or devices than the layout needs, or of half its tensors."""
    if perm is None and inv_perm is None:
        return
    if num_q != num_k:
        raise ValueError(f"num_k is {num_k}; expected {num_q}, num_q, since perm orders both")
    check_tensor("perm", perm, torch.int64, (num_q,))
    check_tensor("inv_perm", inv_perm, torch.int64, (None,))
    for name, value in (("perm", perm), ("inv_perm", inv_perm)):
        if value is not None:  # None is refused above; the type checker does not know
            check_device(name, value, device)


def check_order(perm: Tensor, inv_perm: Tensor) -> None:
    """Refuse a token order whose `inv_perm` does not lead back through `perm`.

    perm int64 [N] holds, for each position of the layout, a token of the caller's order; inv_perm int64 [T] holds
    each of the caller's T tokens' position. T < N where tiles are padded: padding positions name any token.
    """
    for name, value, limit in (("perm", perm, inv_perm.numel()), ("inv_perm", inv_perm, perm.numel())):
        bad = (value < 0) | (value >= limit)
        if bool(bad.any()):
            at = _first(bad)
            raise ValueError(f"{name}{list(at)} is {int(value[at])}; expected 0 to {limit - 1}")
    wrong = perm[inv_perm] != torch.arange(inv_perm.numel(), device=perm.device)
    if bool(wrong.any()):
        (place,) = _first(wrong)
        raise ValueError(f"perm[inv_perm[{place}]] is {int(perm[inv_perm[place]])}; expected {place}, each token once")


def _first(bad: Tensor) -> tuple[int, ...]:
    """Index of the first True, as a tuple."""
    return tuple(bad.nonzero()[0].tolist())
