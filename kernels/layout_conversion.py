"""Block lists to and from dense masks and CSR, on plain tensors.

Shape suffixes: Bx batch or 1, Hx query heads or 1, NQ and NK blocks of queries and keys, M list width, N and M
tokens where the docstring says tokens. Nothing here loops in Python over blocks, heads or tokens.
"""

import math

import torch
from torch import Tensor

from mezzotint.kernels.arguments import check_whole


def lists_from_dense(mask: Tensor, width: int | None = None) -> tuple[Tensor, Tensor]:
    """Sorted lists of the True columns of each row.

    mask bool [..., NQ, NK] -> (num int32 [..., NQ], idx int32 [..., NQ, M]); entries of idx past num are 0. M is the
    longest list, at least 1; give `width` where it is known, and nothing is read back from the device.
    """
    columns = mask.shape[-1]
    num = mask.sum(-1, dtype=torch.int32)
    if width is None:
        width = max(1, int(num.max()))
    numbers = torch.arange(columns, device=mask.device, dtype=torch.int32)
    idx = torch.where(mask, numbers, columns).sort(dim=-1).values[..., :width]
    return num, torch.where(idx < columns, idx, 0).contiguous()


def dense_from_lists(num: Tensor, idx: Tensor, columns: int) -> Tensor:
    """The opposite of `lists_from_dense`: bool [..., NQ, columns]. Lists need not be sorted."""
    listed = torch.arange(idx.shape[-1], device=idx.device) < num[..., None]
    # What is not listed is written to one column more than there are, which is cut off again.
    target = torch.where(listed, idx, columns).long()
    dense = torch.zeros((*num.shape, columns + 1), dtype=torch.bool, device=idx.device)
    return dense.scatter_(-1, target, True)[..., :columns].contiguous()


def lists_from_csr(row_ptr: Tensor, col_idx: Tensor, shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """Lists from compressed rows.

    row_ptr int [Bx * Hx * NQ + 1], col_idx int [nonzeros], shape (Bx, Hx, NQ, NK) -> kv_num int32 [Bx, Hx, NQ] and
    kv_idx int32 [Bx, Hx, NQ, M]. Raises ValueError where the pointers do not start at 0, descend, or do not end at the
    number of nonzeros, and for an index that is no block of keys.
    """
    *of_rows, columns = shape
    check_whole("batch", shape[0], 1)
    check_whole("heads", shape[1], 1)
    rows = math.prod(of_rows)
    for name, value in (("row_ptr", row_ptr), ("col_idx", col_idx)):
        if not isinstance(value, Tensor) or value.dtype not in (torch.int32, torch.int64) or value.dim() != 1:
            raise ValueError(f"{name} is {_kind(value)}; expected a one-dimensional tensor of int32 or int64")
    if row_ptr.numel() != rows + 1:
        raise ValueError(f"row_ptr has {row_ptr.numel()} entries; expected {rows + 1}, batch * heads * blocks + 1")
    if col_idx.device != row_ptr.device:
        raise ValueError(f"col_idx is on {col_idx.device}; expected {row_ptr.device}, where row_ptr is")
    num = row_ptr.diff()
    ends = (int(row_ptr[0]), int(row_ptr[-1]))
    if ends != (0, col_idx.numel()) or bool((num < 0).any()):
        raise ValueError(
            f"row_ptr runs from {ends[0]} to {ends[1]}, its least step is {int(num.min())}; "
            f"expected 0 to {col_idx.numel()}, the length of col_idx, without descending"
        )
    outside = (col_idx < 0) | (col_idx >= columns)  # before 32 bits cut them off
    if bool(outside.any()):
        at = int(outside.nonzero()[0])
        raise ValueError(f"col_idx[{at}] is {int(col_idx[at])}; expected 0 to {columns - 1}, a block of keys")
    width = max(1, int(num.max()))
    slot = torch.arange(width, device=row_ptr.device)
    listed = slot < num[:, None]
    idx = torch.zeros((rows, width), dtype=torch.int32, device=row_ptr.device)
    idx[listed] = col_idx.to(torch.int32)
    return num.to(torch.int32).view(of_rows), idx.view(*of_rows, width)


def csr_from_lists(num: Tensor, idx: Tensor) -> tuple[Tensor, Tensor]:
    """Compressed rows (row_ptr int64 [Bx * Hx * NQ + 1], col_idx int32 [nonzeros]) of lists."""
    row_ptr = torch.zeros(num.numel() + 1, dtype=torch.int64, device=num.device)
    torch.cumsum(num.reshape(-1), 0, dtype=torch.int64, out=row_ptr[1:])
    listed = torch.arange(idx.shape[-1], device=idx.device) < num[..., None]
    return row_ptr, idx[listed]


def expand_to_tokens(dense: Tensor, q_len: Tensor, k_len: Tensor, blocks: tuple[int, int]) -> Tensor:
    """Bool [Bx, Hx, NQ, NK] over blocks -> bool [Bx, Hx, NQ * block_q, NK * block_k] over tokens.

    Only the first q_len [NQ] and k_len [NK] tokens of a block count.
    """
    rows = valid_tokens(q_len, blocks[0])
    columns = valid_tokens(k_len, blocks[1])
    tokens = dense.repeat_interleave(blocks[0], -2).repeat_interleave(blocks[1], -1)
    return tokens & rows[:, None] & columns


def valid_tokens(lengths: Tensor, block: int) -> Tensor:
    """Bool [blocks * block]: True for the first `lengths[i]` tokens of block i."""
    return (torch.arange(block, device=lengths.device) < lengths[:, None]).reshape(-1)


def whole_lengths(num_tokens: int, block: int, device: torch.device) -> Tensor:
    """Tokens of each block when nothing is padded, int32 [blocks]: `block`, and what is left for the last one."""
    starts = torch.arange(0, num_tokens, block, dtype=torch.int32, device=device)
    return (num_tokens - starts).clamp(max=block)


def take_tokens(x: Tensor, dim: int, order: Tensor, num_tokens: int) -> Tensor:
    """x at the places that `order`, int64, names along `dim`, where x must have `num_tokens` (ValueError otherwise)."""
    if not -x.dim() <= dim < x.dim() or x.shape[dim] != num_tokens:
        raise ValueError(f"x has shape {list(x.shape)}; expected {num_tokens} tokens along dimension {dim}")
    return x.index_select(dim, order)


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} with shape {list(value.shape)}"
    return f"a {type(value).__name__}"
