"""Layouts made from layouts over the same tokens: union, intersection, one a head, smaller blocks.

All are exact, pair by pair, where some of the layouts have partly masked blocks. Shape suffixes: Bx batch or 1, Hx
query heads or 1, NQ and NK blocks of queries and keys.
"""

import dataclasses
import functools
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mezzotint.kernels import layout_masks as masks
from mezzotint.kernels.arguments import check_kind
from mezzotint.kernels.layout import BlockLayout
from mezzotint.kernels.layout_check import BLOCK_SIZES
from mezzotint.kernels.layout_conversion import lists_from_dense
from mezzotint.kernels.layout_masks import BlockMap, Logic


def with_mask(layout: BlockLayout, mask: Tensor, width: int | None = None) -> BlockLayout:
    """A layout over the same tokens that keeps whole blocks by `mask`, bool [Bx, Hx, NQ, NK], and nothing else.

    Blocks without any valid token are left out, whatever the mask says. `width`, an upper bound of the longest list,
    spares a read back from the device.
    """
    kv_num, kv_idx = lists_from_dense(_drop_empty(mask, layout.q_len, layout.k_len), width)
    lists: dict[str, Any] = {"kv_num": kv_num, "kv_idx": kv_idx, "mask_idx": None, "mask_bits": None}
    return dataclasses.replace(layout, **lists, validate=False)


def with_map(layout: BlockLayout, block_map: BlockMap) -> BlockLayout:
    """A layout over the same tokens that keeps what a map of its blocks says, in as few masks as may be."""
    q_len, k_len = layout.q_lengths(), layout.k_lengths()
    blocks, bits = masks.simplify(block_map, layout.block_k, q_len, k_len)
    valid = (q_len > 0)[:, None] & (k_len > 0)
    lists: dict[str, Any] = masks.lists_from_map((torch.where(valid, blocks, masks.ABSENT), bits))
    return dataclasses.replace(layout, **lists, validate=False)


def select_blocks(layout: BlockLayout, mask: Tensor, width: int | None = None) -> BlockLayout:
    """Those blocks of `layout` that `mask`, bool [Bx, Hx, NQ, NK], names; partly masked ones stay so.

    `width` as in `with_mask`; it is not needed where a block is partly masked.
    """
    if layout.mask_bits is None:
        return with_mask(layout, mask & layout.to_dense(), width)
    return with_map(layout, (torch.where(mask, layout.block_map(), masks.ABSENT), layout.mask_bits))


def full_like(layout: BlockLayout) -> BlockLayout:
    """Every pair of blocks, over the tokens of `layout`."""
    check_kind("layout", layout, BlockLayout)
    shape = (1, 1, layout.num_q_blocks, layout.num_k_blocks)
    return with_mask(layout, torch.ones(shape, dtype=torch.bool, device=layout.device), layout.num_k_blocks)


def union(*layouts: BlockLayout) -> BlockLayout:
    """The pairs that any of the layouts keeps. Sizes of 1 in batch and heads broadcast.

    Raises ValueError where the layouts differ in blocks, tokens, token order or device.
    """
    return _combine(operator.or_, layouts)


def intersect(*layouts: BlockLayout) -> BlockLayout:
    """The pairs that all of the layouts keep. Broadcasts and raises as `union` does."""
    return _combine(operator.and_, layouts)


def per_head(layouts: Sequence[BlockLayout]) -> BlockLayout:
    """One layout a query head, in order: layouts[h] is what head h sees.

    Raises ValueError where one of them has heads of its own, and as `union` does.
    """
    check_same_tokens(layouts)
    for index, layout in enumerate(layouts):
        if layout.kv_num.shape[1] != 1:
            raise ValueError(f"layouts[{index}] has {layout.kv_num.shape[1]} heads; expected 1, to be one head's")
    batch = max(layout.kv_num.shape[0] for layout in layouts)
    blocks, bits, count = [], [], 0
    for layout in layouts:
        own = layout.block_map().expand(batch, -1, -1, -1)
        blocks.append(torch.where(own < 0, own, own + count))
        if layout.mask_bits is not None:
            bits.append(layout.mask_bits)
            count += len(layout.mask_bits)
    return with_map(layouts[0], (torch.cat(blocks, dim=1), torch.cat(bits) if bits else None))


def split_blocks(layout: BlockLayout, *, block_q: int, block_k: int) -> BlockLayout:
    """The same token pairs in smaller blocks, for a kernel whose blocks of queries and keys differ in size.

    Raises ValueError where a new block is larger than the old one or is no block size.
    """
    check_kind("layout", layout, BlockLayout)
    for name, new, old in (("block_q", block_q, layout.block_q), ("block_k", block_k, layout.block_k)):
        if new not in BLOCK_SIZES or new > old:
            raise ValueError(f"{name} is {new!r}; expected one of {BLOCK_SIZES}, at most {old}, the layout's own")
    rows, columns = -(-layout.num_q // block_q), -(-layout.num_k // block_k)
    blocks, bits = _split_map((layout.block_map(), layout.mask_bits), layout, (block_q, block_k))
    q_len = _split_lengths(layout.q_len, layout.block_q, block_q, rows)
    k_len = _split_lengths(layout.k_len, layout.block_k, block_k, columns)
    nothing: dict[str, Any] = masks.lists_from_map((torch.full_like(blocks[..., :rows, :columns], masks.ABSENT), None))
    sizes: dict[str, Any] = {"block_q": block_q, "block_k": block_k, "q_len": q_len, "k_len": k_len}
    split = dataclasses.replace(layout, **sizes, **nothing, validate=False)
    return with_map(split, (blocks[..., :rows, :columns], bits))


def check_same_tokens(layouts: Sequence[BlockLayout], names: Sequence[str] | None = None) -> None:
    """Refuse what is no layout, and layouts that differ in block sizes, tokens, valid tokens, order, device, batch or
    heads.

    `names` are what the errors call them; None is layouts[0], layouts[1] and so on.
    """
    check_kind("layouts", layouts, Sequence)
    if not layouts:
        raise ValueError("layouts is empty; expected at least one")
    names = [f"layouts[{index}]" for index in range(len(layouts))] if names is None else names
    for layout, name in zip(layouts, names, strict=True):
        check_kind(name, layout, BlockLayout)
    largest = [max(layout.kv_num.shape[axis] for layout in layouts) for axis in (0, 1)]
    first = layouts[0]
    for layout, name in zip(layouts, names, strict=True):
        for field in ("block_q", "block_k", "num_q", "num_k", "device"):
            got, want = getattr(layout, field), getattr(first, field)
            if got != want:
                raise ValueError(f"{name}.{field} is {got}; expected {want}, as {names[0]} has")
        for axis, what in enumerate(("batch", "heads")):
            if layout.kv_num.shape[axis] not in (1, largest[axis]):
                raise ValueError(
                    f"{name} has a {what} size of {layout.kv_num.shape[axis]}; expected 1 or {largest[axis]}"
                )
        same_lengths = _same(layout.q_lengths(), first.q_lengths()) and _same(layout.k_lengths(), first.k_lengths())
        if not same_lengths:
            raise ValueError(f"{name} has other valid tokens (q_len, k_len); expected those of {names[0]}")
        if not (_same(layout.perm, first.perm) and _same(layout.inv_perm, first.inv_perm)):
            raise ValueError(f"{name}.perm is another token order; expected that of {names[0]}")


def _combine(logic: Logic, layouts: Sequence[BlockLayout]) -> BlockLayout:
    check_same_tokens(layouts)
    if all(layout.mask_bits is None for layout in layouts):
        return with_mask(layouts[0], functools.reduce(logic, (layout.to_dense() for layout in layouts)))
    shape = (layouts[0].block_q, layouts[0].block_k)
    maps: list[BlockMap] = [(layout.block_map(), layout.mask_bits) for layout in layouts]
    return with_map(layouts[0], functools.reduce(lambda a, b: masks.combine(logic, a, b, shape), maps))


def _split_map(block_map: BlockMap, layout: BlockLayout, shape: tuple[int, int]) -> BlockMap:
    """The map over blocks of `shape`, of which each block of the layout holds some whole number."""
    blocks, bits = block_map
    down, across = layout.block_q // shape[0], layout.block_k // shape[1]
    blocks = blocks.repeat_interleave(down, -2).repeat_interleave(across, -1)
    if bits is None:
        return blocks, None
    pieces = masks.unpack_bits(bits, layout.block_k).unflatten(-1, (across, shape[1])).unflatten(-3, (down, shape[0]))
    row = torch.arange(blocks.shape[-2], device=blocks.device)[:, None] % down
    column = torch.arange(blocks.shape[-1], device=blocks.device) % across
    numbers = (blocks * down + row) * across + column
    bits = masks.pack_bits(pieces.transpose(-3, -2).reshape(-1, *shape))
    return torch.where(blocks < 0, blocks, numbers).to(torch.int32), bits


def _drop_empty(mask: Tensor, q_len: Tensor | None, k_len: Tensor | None) -> Tensor:
    if q_len is not None:
        mask = mask & (q_len > 0)[:, None]
    return mask if k_len is None else mask & (k_len > 0)


def _split_lengths(lengths: Tensor | None, old: int, new: int, blocks: int) -> Tensor | None:
    if lengths is None:
        return None
    starts = torch.arange(0, old, new, dtype=torch.int32, device=lengths.device)
    return (lengths[:, None] - starts).clamp(0, new).reshape(-1)[:blocks].contiguous()


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    """Shapes alone while torch.compile traces: it knows no values, and the uncompiled call looks at them."""
    if a is None or b is None or a is b:
        return a is b
    return a.shape == b.shape and (torch.compiler.is_compiling() or torch.equal(a, b))
