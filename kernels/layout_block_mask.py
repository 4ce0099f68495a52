"""Block lists to and from FlexAttention's BlockMask, on plain tensors.

Shape suffixes: Bx batch or 1, Hx query heads or 1, NQ and NK blocks of queries and keys, N and M tokens.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mezzotint.kernels.arguments import check_kind
from mezzotint.kernels.layout_conversion import dense_from_lists, expand_to_tokens, lists_from_dense, whole_lengths
from mezzotint.kernels.layout_masks import ABSENT, BlockMap, block_table, lists_from_map, map_from_tokens

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


def _split(
    blocks: Tensor, q_len: Tensor, k_len: Tensor, whole: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Split a map of blocks into FlexAttention's partial and full lists, each as wide as NK.

    `whole` holds the tokens that each block of queries and of keys has in the sequence; a block with a bit mask, or
    with fewer valid tokens than that, is partial. Returns (partial num, partial idx, full num, full idx), int32.
    """
    kept = blocks != ABSENT
    full = kept & (blocks < 0) & (q_len == whole[0])[:, None] & (k_len == whole[1])
    columns = blocks.shape[-1]
    return (*lists_from_dense(kept & ~full, columns), *lists_from_dense(full, columns))


def make_block_mask(
    block_map: BlockMap, lengths: tuple[Tensor, Tensor], tokens: tuple[int, int], shape: tuple[int, int]
) -> "BlockMask":
    """A BlockMask that means the same to eager FlexAttention, which reads only mask_mod, as to compiled.

    Eager FlexAttention ignores the index lists (torch 2.13): a mask without a mask_mod would be dense attention there.
    So mask_mod looks every pair up; compiled code calls it for partial blocks alone. lengths are q_len and k_len,
    tokens num_q and num_k, shape block_q and block_k.
    """
    from torch.nn.attention.flex_attention import BlockMask

    (blocks, bits), (q_len, k_len), (block_q, block_k) = block_map, lengths, shape
    many_batch, many_heads = blocks.shape[0] > 1, blocks.shape[1] > 1
    table = block_table(bits, shape, blocks.device)
    kinds = blocks % len(table)  # no negative index: what traces mask_mod need not know them

    def mask_mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        row, column = q_idx // block_q, kv_idx // block_k
        kind = kinds[b if many_batch else b * 0, h if many_heads else h * 0, row, column]
        valid = (q_idx % block_q < q_len[row]) & (kv_idx % block_k < k_len[column])
        return valid & table[kind, q_idx % block_q, kv_idx % block_k]

    whole = tuple(whole_lengths(count, block, blocks.device) for count, block in zip(tokens, shape, strict=True))
    num, idx, full_num, full_idx = _split(blocks, q_len, k_len, (whole[0], whole[1]))
    return BlockMask.from_kv_blocks(
        num, idx, full_num, full_idx, BLOCK_SIZE=shape, mask_mod=mask_mod, seq_lengths=tokens
    )


def check_given(block_mask: object, partial: str) -> None:
    """Refuse what is no BlockMask, and words that `BlockLayout.from_block_mask` does not know."""
    from torch.nn.attention.flex_attention import BlockMask

    check_kind("block_mask", block_mask, BlockMask)
    if partial not in ("exact", "refuse", "whole"):
        raise ValueError(f'partial is {partial!r}; expected "exact", "refuse" or "whole"')


def lists_from_block_mask(block_mask: "BlockMask", partial: str) -> dict[str, Tensor | None]:
    """The lists of a BlockLayout, by name: kv_num, kv_idx, and q_len with k_len or mask_idx with mask_bits.

    `partial` as in `BlockLayout.from_block_mask`. Raises ValueError where it is "refuse"
    and mask_mod does more than leave out the last tokens of blocks.
    """
    dense, partials = _dense(block_mask)
    blocks = block_mask.BLOCK_SIZE
    lengths: dict[str, Tensor | None] = {}
    if partial != "whole" and bool(partials.any()):
        tokens = _tokens(block_mask, dense, partials)
        found = _lengths(tokens, dense, blocks)
        if found is None and partial == "exact":
            return lists_from_map(map_from_tokens(tokens, blocks))
        if found is None:
            raise ValueError(
                f"block_mask has {int(partials.sum())} partial blocks, and its mask_mod cuts through some; expected "
                'whole blocks under partial="refuse" ("exact" keeps the bits of partial ones)'
            )
        lengths = {"q_len": found[0], "k_len": found[1]}
    kv_num, kv_idx = lists_from_dense(dense)
    return {"kv_num": kv_num, "kv_idx": kv_idx, **lengths}


def _dense(block_mask: "BlockMask") -> tuple[Tensor, Tensor]:
    """(every listed block, the partial ones among them) of a BlockMask, bool [Bx, Hx, NQ, NK]."""
    columns = -(-block_mask.seq_lengths[1] // block_mask.BLOCK_SIZE[1])
    partial = dense_from_lists(block_mask.kv_num_blocks, block_mask.kv_indices, columns)
    if block_mask.full_kv_num_blocks is None:
        return partial, partial
    assert block_mask.full_kv_indices is not None  # BlockMask holds both or neither
    full = dense_from_lists(block_mask.full_kv_num_blocks, block_mask.full_kv_indices, columns)
    return partial | full, partial & ~full


def _tokens(block_mask: "BlockMask", dense: Tensor, partial: Tensor) -> Tensor:
    """The pairs that a BlockMask keeps, bool [Bx, Hx, N, M]: full blocks whole, partial ones by mask_mod."""
    from torch.nn.attention.flex_attention import create_mask

    blocks, (num_q, num_k) = block_mask.BLOCK_SIZE, block_mask.seq_lengths
    batch, heads = dense.shape[:2]
    modded = create_mask(block_mask.mask_mod, batch, heads, num_q, num_k, device=str(dense.device))
    q_len, k_len = whole_lengths(num_q, blocks[0], dense.device), whole_lengths(num_k, blocks[1], dense.device)
    inside, mixed = (
        expand_to_tokens(some, q_len, k_len, blocks)[..., :num_q, :num_k] for some in (dense & ~partial, partial)
    )
    return inside | (modded & mixed)


def _lengths(tokens: Tensor, dense: Tensor, blocks: tuple[int, int]) -> tuple[Tensor, Tensor] | None:
    """Valid tokens of each block (q_len int32 [NQ], k_len int32 [NK]) that make `dense` the given token pairs.

    None where the pairs are cut in any other way than by leaving out the last tokens of a block of queries or of keys.
    """
    found = []
    for across, tokens_of in ((-1, -2), (-2, -1)):
        size, block = tokens.shape[tokens_of], blocks[tokens_of]
        seen, used = (mask.any(across).any(0).any(0) for mask in (tokens, dense))
        whole = whole_lengths(size, block, tokens.device)
        padded = F.pad(seen, (0, -size % block)).view(-1, block)
        # Of a block in no list nothing tells; it is taken as whole.
        found.append(torch.where(used, padded.sum(-1, dtype=torch.int32), whole))
    q_len, k_len = found
    expanded = expand_to_tokens(dense, q_len, k_len, blocks)[..., : tokens.shape[-2], : tokens.shape[-1]]
    return (q_len, k_len) if torch.equal(expanded, tokens) else None
