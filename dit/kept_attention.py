"""The patterns of `DiTConfig.attention` where each picture keeps only some of its tokens.

Kept tokens run through the blocks sorted by the tiles that they lie in, so that a block of the layout still is a
compact piece of the picture, if a looser one. Who sees whom is what it is among all tokens.

Shape suffixes: B batch, K kept tokens, P tiles.
"""

from functools import lru_cache

import torch
from torch import Tensor

from mezzotint.dit.attention_cost import kept_blocks
from mezzotint.dit.config import DiTConfig
from mezzotint.dit.density import Grid
from mezzotint.dit.sparse_attention import SparseAttention, after_text, window_layout
from mezzotint.kernels import BlockLayout, policies
from mezzotint.kernels.tile_order import tile_order


def sorted_by_tiles(config: DiTConfig, grid: Grid, keep_BK: Tensor) -> Tensor:
    """The same numbers of tokens in the order of their tiles; as they are where attention has no pattern."""
    if config.attention == "full":
        return keep_BK
    place_BK = _tile_places(config, grid, keep_BK.device)[keep_BK]
    return keep_BK.gather(1, place_BK.argsort(dim=1))


def kept_attention(config: DiTConfig, grid: Grid, keep_BK: Tensor, num_text: int) -> SparseAttention | None:
    """The pattern for num_text tokens before the kept ones, which are sorted by tiles; None for "full".

    "window": a token sees the kept tokens of the tiles that its own tile sees, to the token, each picture its own.
    "routed": consecutive kept tokens, as many as a tile has, choose among all such blocks.
    """
    if config.attention == "full":
        return None
    block, count = config.attention_tile**2, keep_BK.shape[1]
    if config.attention == "window":
        tile_BK = _tile_places(config, grid, keep_BK.device)[keep_BK] // block
        sees_PP = window_layout(config, grid, keep_BK.device).to_dense()[0, 0]
        mask = sees_PP[tile_BK[:, :, None], tile_BK[:, None, :]]
        layout = BlockLayout.from_token_mask(mask[:, None], block_q=block, block_k=block)
        return SparseAttention(layout=after_text(layout, num_text))
    return _routed(config, block, count, num_text, keep_BK.device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # kept, so it may be made while drawing and be used while training
def _routed(config: DiTConfig, block: int, count: int, num_text: int, device: torch.device) -> SparseAttention:
    every = BlockLayout.full(block_q=block, block_k=block, num_q=count, num_k=count, device=device)
    candidates = after_text(every, num_text)
    return SparseAttention(
        layout=candidates, always=after_text(policies.diagonal(every), num_text),
        count=kept_blocks(config, candidates.num_k_blocks),
    )


def _tile_places(config: DiTConfig, grid: Grid, device: torch.device) -> Tensor:
    """Where each token of the grid lies in tile order, int64 [N]."""
    places = tile_order(grid, (config.attention_tile, config.attention_tile), device).inv_perm
    assert places is not None  # a grid of two axes always has an order
    return places
