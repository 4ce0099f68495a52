"""Partly masked blocks of a layout: their bits, and the map that says of each pair of blocks what is kept of it.

Shape suffixes: Bx batch or 1, Hx query heads or 1, NQ and NK blocks of queries and keys, M list width, P bit masks,
W 32-bit words of a row of a block, N and M tokens where the docstring says tokens.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mezzotint.kernels.layout_conversion import lists_from_dense, whole_lengths

WORD = 32
WHOLE, ABSENT = -1, -2
"""Of a map of blocks: every pair of the block is kept, or none. From 0 on an entry names a bit mask."""

BlockMap = tuple[Tensor, Tensor | None]
"""int32 [Bx, Hx, NQ, NK] of such entries, and the bit masks int32 [P, block_q, W]; None where no entry names one."""

Logic = Callable[[Tensor, Tensor], Tensor]
"""Bitwise and, or."""


def num_words(block_k: int) -> int:
    """Words of one row of a mask, W."""
    return -(-block_k // WORD)


def pack_bits(mask: Tensor) -> Tensor:
    """bool [..., block_k] -> int32 [..., W]: bit b of word w is key 32 w + b."""
    bits = F.pad(mask, (0, -mask.shape[-1] % WORD)).unflatten(-1, (-1, WORD)).long()
    words = (bits << torch.arange(WORD, device=mask.device)).sum(-1)
    return torch.where(words < 2**31, words, words - 2**32).to(torch.int32)


def unpack_bits(bits: Tensor, block_k: int) -> Tensor:
    """The opposite of `pack_bits`: int32 [..., W] -> bool [..., block_k]."""
    shifts = torch.arange(WORD, dtype=torch.int32, device=bits.device)
    return (bits[..., None] >> shifts & 1).flatten(-2)[..., :block_k].bool()


def kept_pairs(
    lists: tuple[Tensor, Tensor, Tensor | None], lengths: tuple[Tensor, Tensor], bits: Tensor | None, block_k: int
) -> int:
    """Token pairs that a layout keeps, over its Bx and Hx.

    lists: which entries count, bool, the blocks of keys, and the masks or None, each [Bx, Hx, NQ, M]. lengths: valid
    tokens of blocks of queries [NQ] and of keys [NK].
    """
    (listed, idx, mask_idx), (q_len, k_len) = lists, lengths
    keys = torch.where(listed, k_len.long()[idx.long()], 0)
    pairs = keys * q_len[:, None]
    if mask_idx is not None and bits is not None:
        partial = mask_idx >= 0
        rows = q_len[:, None].expand_as(keys)[partial]
        pairs[partial] = count_pairs(bits, block_k, mask_idx[partial], rows, keys[partial])
    return int(pairs.sum())


def count_pairs(bits: Tensor, block_k: int, masks: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pairs that a mask keeps of the first rows and columns of its block, int64, in the shape of `masks`.

    masks, rows, columns: int, one shape: which mask of bits [P, block_q, W], how many queries and how many keys.
    """
    block_q = bits.shape[-2]
    sizes = (block_q + 1, block_k + 1)
    kinds, same = torch.unique((masks.long() * sizes[0] + rows) * sizes[1] + columns, return_inverse=True)
    some_rows, some_columns = kinds // sizes[1] % sizes[0], kinds % sizes[1]
    valid = torch.arange(block_q, device=bits.device) < some_rows[:, None]
    valid = valid[..., None] & (torch.arange(block_k, device=bits.device) < some_columns[:, None])[:, None]
    kept = unpack_bits(bits[kinds // (sizes[0] * sizes[1])], block_k) & valid
    return kept.sum((-2, -1))[same]


def map_from_lists(num: Tensor, idx: Tensor, mask_idx: Tensor | None, columns: int) -> Tensor:
    """Lists [..., NQ] and [..., NQ, M] -> int32 [..., NQ, columns]: ABSENT, WHOLE or the mask of each block."""
    listed = torch.arange(idx.shape[-1], device=idx.device) < num[..., None]
    # What is not listed is written to one column more than there are, which is cut off again.
    target = torch.where(listed, idx, columns).long()
    blocks = torch.full((*num.shape, columns + 1), ABSENT, dtype=torch.int32, device=idx.device)
    source = torch.full_like(idx, WHOLE) if mask_idx is None else mask_idx
    return blocks.scatter_(-1, target, source)[..., :columns].contiguous()


def lists_from_map(block_map: BlockMap) -> dict[str, Tensor | None]:
    """The opposite: kv_num, kv_idx, mask_idx and mask_bits of a layout, by name."""
    blocks, bits = block_map
    num, idx = lists_from_dense(blocks != ABSENT)
    mask_idx = None if bits is None else masks_beside(num, idx, blocks)
    return {"kv_num": num, "kv_idx": idx, "mask_idx": mask_idx, "mask_bits": bits}


def masks_beside(num: Tensor, idx: Tensor, blocks: Tensor) -> Tensor:
    """The map's entry of each listed block, WHOLE past the end of a list: int32 in the shape of idx."""
    listed = torch.arange(idx.shape[-1], device=idx.device) < num[..., None]
    return torch.where(listed, blocks.gather(-1, idx.long()), WHOLE)


def map_from_tokens(mask: Tensor, shape: tuple[int, int]) -> BlockMap:
    """A mask of token pairs, bool [Bx, Hx, N, M] over tokens -> its map of blocks of `shape`, equal bits shared."""
    (block_q, block_k), (num_q, num_k) = shape, mask.shape[-2:]
    padded = F.pad(mask, (0, -num_k % block_k, 0, -num_q % block_q))
    tiles = padded.unflatten(-1, (-1, block_k)).unflatten(-3, (-1, block_q)).transpose(-3, -2)
    kept = tiles.sum((-2, -1), dtype=torch.int32)
    mixed = (kept > 0) & (kept < block_q * block_k)  # ragged ends, too
    blocks = torch.full(kept.shape, ABSENT, dtype=torch.int32, device=mask.device).masked_fill(kept > 0, WHOLE)
    blocks[mixed] = torch.arange(int(mixed.sum()), dtype=torch.int32, device=mask.device)
    q_len, k_len = whole_lengths(num_q, block_q, mask.device), whole_lengths(num_k, block_k, mask.device)
    return simplify((blocks, pack_bits(tiles[mixed])), block_k, q_len, k_len)


def tokens_from_map(block_map: BlockMap, shape: tuple[int, int]) -> Tensor:
    """A map of blocks of `shape` = (block_q, block_k) -> bool [Bx, Hx, NQ * block_q, NK * block_k] over tokens."""
    blocks, bits = block_map
    table = block_table(bits, shape, blocks.device)
    return table[blocks.long()].transpose(-3, -2).flatten(-2).flatten(-3, -2)


def block_table(bits: Tensor | None, shape: tuple[int, int], device: torch.device) -> Tensor:
    """What each entry of a map keeps, bool [P + 2, block_q, block_k]; ABSENT and WHOLE count from the end."""
    return unpack_bits(_with_plain(bits, shape, device), shape[1])


def combine(logic: Logic, a: BlockMap, b: BlockMap, shape: tuple[int, int]) -> BlockMap:
    """`logic` of the token pairs of two maps of blocks of `shape`; batch and heads broadcast.

    Every block of the result has a mask, whole and absent ones too: `simplify` tells them apart.
    """
    rows_a, rows_b = (_with_plain(bits, shape, blocks.device) for blocks, bits in (a, b))
    pairs = a[0].long() % len(rows_a) * len(rows_b) + b[0].long() % len(rows_b)
    kinds, found = torch.unique(pairs, return_inverse=True)
    return found.to(torch.int32), logic(rows_a[kinds // len(rows_b)], rows_b[kinds % len(rows_b)])


def simplify(block_map: BlockMap, block_k: int, q_len: Tensor, k_len: Tensor) -> BlockMap:
    """The same pairs of valid tokens in fewer masks.

    A partial block of whose valid pairs all count is whole, one of which none does is absent; equal masks become one,
    and those that no block has are dropped. q_len [NQ], k_len [NK].
    """
    blocks, bits = block_map
    partial = blocks >= 0
    if bits is None or not bool(partial.any()):
        return blocks, None
    *_, row, column = partial.nonzero(as_tuple=True)
    masks, rows, columns = blocks[partial].long(), q_len[row].long(), k_len[column].long()
    kept = count_pairs(bits, block_k, masks, rows, columns)
    unequal, same = torch.unique(bits, dim=0, return_inverse=True)
    mixed = (kept > 0) & (kept < rows * columns)
    used, compact = torch.unique(same[masks[mixed]], return_inverse=True)
    found = torch.where(kept > 0, WHOLE, ABSENT).to(torch.int32)
    found[mixed] = compact.to(torch.int32)
    blocks = blocks.clone()
    blocks[partial] = found
    return blocks, unequal[used] if len(used) else None


def _with_plain(bits: Tensor | None, shape: tuple[int, int], device: torch.device) -> Tensor:
    """The bits with those of ABSENT and of WHOLE behind them: both count from the end."""
    plain = torch.zeros((2, *shape), dtype=torch.bool, device=device)
    plain[WHOLE] = True
    return pack_bits(plain) if bits is None else torch.cat([bits, pack_bits(plain)])
