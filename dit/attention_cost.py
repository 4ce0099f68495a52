"""What self-attention costs under each pattern of `DiTConfig.attention`. Pure arithmetic."""

from dataclasses import dataclass
from math import ceil, prod

from mezzotint.dit.config import DiTConfig

Grid = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionCost:
    """positions: tokens of the sequence that the blocks run on, padding of tiles included.
    pairs: (query, key) pairs that a head computes.
    routing_pairs: pairs of pooled blocks that a head scores to choose them."""

    positions: int
    pairs: int
    routing_pairs: int = 0


def attention_cost(config: DiTConfig, grid: Grid, num_text: int) -> AttentionCost:
    """Cost of one self-attention over num_text tokens (0 with cross-attention) and a grid of (rows, columns).

    Exact for "full" and "window"; for "routed" on grids of whole tiles, else each tile counts as the mean one.
    """
    tokens = num_text + prod(grid)
    if config.attention == "full":
        return AttentionCost(positions=tokens, pairs=tokens**2)
    block = config.attention_tile**2
    text_blocks, tiles = ceil(num_text / block), prod(ceil(side / config.attention_tile) for side in grid)
    positions = (text_blocks + tiles) * block
    if config.attention == "window":
        return AttentionCost(positions=positions, pairs=tokens**2 - prod(grid) ** 2 + _window_pairs(config, grid))
    blocks = text_blocks + tiles
    seen = min(max(kept_blocks(config, blocks), text_blocks + 1), blocks) - text_blocks
    image_pairs = prod(grid) * seen * prod(grid) // tiles
    return AttentionCost(
        positions=positions, pairs=tokens**2 - prod(grid) ** 2 + image_pairs, routing_pairs=blocks**2
    )


def kept_blocks(config: DiTConfig, blocks: int) -> int:
    """Blocks of keys that a block of queries keeps of `blocks` when they are routed."""
    return max(1, ceil(config.attention_keep * blocks))


def _window_pairs(config: DiTConfig, grid: Grid) -> int:
    return prod(_axis_pairs(side, config.attention_tile, config.attention_window) for side in grid)


def _axis_pairs(side: int, tile: int, window: int) -> int:
    """Pairs along one axis: each tile sees a window of whole tiles, pushed inwards at the border."""
    lengths = [min(tile, side - start) for start in range(0, side, tile)]
    size = min(len(lengths), ceil(window / tile))
    starts = (min(max(place - size // 2, 0), len(lengths) - size) for place in range(len(lengths)))
    return sum(own * sum(lengths[start : start + size]) for own, start in zip(lengths, starts, strict=True))
