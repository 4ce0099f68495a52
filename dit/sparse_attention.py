"""Self-attention over kept blocks of tokens: the patterns of `DiTConfig.attention` other than "full".

Tokens run through the blocks in tile order (a block of the layout is a square of the picture), so they are arranged
once before the first block and restored after the last. Text tokens come first; they see all and are seen by all.

Shape suffixes: B batch, N tokens, H heads, D head channels.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from mezzotint.dit.attention_cost import kept_blocks
from mezzotint.dit.config import DiTConfig
from mezzotint.kernels import BlockLayout, LayoutCache, block_sparse_attention, policies, routing


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SparseAttention:
    """A layout, or what one is chosen from in each layer.

    layout: the kept blocks; for routing the blocks to choose from.
    always: for routing, the blocks that are kept in any case (a tile's own, and the text); None takes `layout`
        as it is.
    count: for routing, blocks of keys a block of queries keeps, those of `always` included.
    layer, chosen: for routing, the layer it is in, and what the layers of a pass share of their choices.
    """

    layout: BlockLayout
    always: BlockLayout | None = None
    count: int = 0
    layer: int = 0
    chosen: LayoutCache | None = None

    def in_layer(self, layer: int, chosen: LayoutCache) -> "SparseAttention":
        """The same in one layer of a pass."""
        return self if self.always is None else replace(self, layer=layer, chosen=chosen)

    def __call__(self, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
        """Attention [B, H, N, D] of tokens in the layout's order."""
        out = block_sparse_attention(q_BHND, k_BHND, v_BHND, self._kept(q_BHND, k_BHND))
        assert isinstance(out, Tensor)  # lse was not asked for
        return out

    def _kept(self, q_BHND: Tensor, k_BHND: Tensor) -> BlockLayout:
        if self.always is None:
            return self.layout
        if self.chosen is None:
            return self._choose(q_BHND, k_BHND)
        return self.chosen.get(self.layer, 0, lambda: self._choose(q_BHND, k_BHND))

    def _choose(self, q_BHND: Tensor, k_BHND: Tensor) -> BlockLayout:
        scores = routing.block_scores(q_BHND, k_BHND, self.layout)
        return routing.top_blocks(scores, self.layout, self.count, always=self.always)


@lru_cache(maxsize=64)
def sparse_attention(
    config: DiTConfig, grid: tuple[int, int], num_text: int, device: torch.device
) -> SparseAttention | None:
    """The pattern of a config for num_text tokens before a grid of (rows, columns); None for "full"."""
    if config.attention == "full":
        return None
    if config.attention == "window":
        return SparseAttention(layout=after_text(window_layout(config, grid, device), num_text))
    every = policies.full(grid, (config.attention_tile, config.attention_tile), device=device)
    candidates = after_text(every, num_text)
    return SparseAttention(
        layout=candidates, always=after_text(policies.diagonal(every), num_text),
        count=kept_blocks(config, candidates.num_k_blocks),
    )


def window_layout(config: DiTConfig, grid: tuple[int, int], device: torch.device) -> BlockLayout:
    """Each tile sees a window of tiles around it, both counted in tokens of this grid."""
    tile, window = (config.attention_tile,) * 2, (config.attention_window,) * 2
    return policies.local_2d(grid, window, tile=tile, device=device)


def after_text(layout: BlockLayout, num_text: int) -> BlockLayout:
    """The layout with text in front, which sees all and is seen by all."""
    return policies.text_first(layout, num_text) if num_text else layout
