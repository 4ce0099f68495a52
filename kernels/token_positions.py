"""Tokens that a caller names by number, and where a layout has put them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mezzotint.kernels.arguments import check, check_kind, is_whole
from mezzotint.kernels.layout import BlockLayout

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)


def positions_of(layout: BlockLayout, tokens: Sequence[int] | Tensor) -> Tensor:
    """Positions in the layout of tokens in the caller's order, int64, one dimension.

    Raises ValueError for what is no token of the layout; fractions and flags are none.
    """
    check_kind("layout", layout, BlockLayout)
    index = _whole_numbers(tokens).to(layout.device).reshape(-1)
    limit = layout.num_k if layout.inv_perm is None else layout.inv_perm.numel()
    bad = (index < 0) | (index >= limit)
    if bool(bad.any()):
        raise ValueError(f"tokens holds {int(index[bad][0])}; expected 0 to {limit - 1}")
    return index if layout.inv_perm is None else layout.inv_perm[index]


def _whole_numbers(tokens: Sequence[int] | Tensor) -> Tensor:
    """As int64. torch would cut fractions off, and read a mask of flags as tokens 0 and 1."""
    if isinstance(tokens, Tensor):
        check(tokens.dtype in _WHOLE, "tokens", tokens.dtype, "whole numbers, such as torch.int64")
        return tokens.long()
    check_kind("tokens", tokens, Sequence)
    for token in tokens:
        if not is_whole(token):
            raise ValueError(f"tokens holds {token!r}; expected whole numbers")
    return torch.tensor(list(tokens), dtype=torch.int64)
