"""What self-attention costs under each pattern of `DiTConfig.attention`. Pure arithmetic."""

from collections.abc import Sequence
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
    return _routed_cost(config, prod(grid), tiles, num_text, positions)


def kept_attention_cost(config: DiTConfig, grid: Grid, num_text: int, kept: int) -> AttentionCost:
    """Cost of one self-attention over num_text tokens and `kept` of the grid's.

    Exact for "full", and for "routed" where they fill whole blocks; for "window" the mean over tokens that are kept
    one by one at random, rounded.
    """
    tokens, block = num_text + kept, config.attention_tile**2
    if config.attention == "full":
        return AttentionCost(positions=tokens, pairs=tokens**2)
    positions = ceil(num_text / block) * block + kept
    if config.attention == "routed":
        return _routed_cost(config, kept, ceil(kept / block), num_text, positions)
    total = prod(grid)
    others = _window_pairs(config, grid) - total  # a pair of different tokens is kept when both are
    image_pairs = kept + (round(others * kept * (kept - 1) / (total * (total - 1))) if total > 1 else 0)
    return AttentionCost(positions=positions, pairs=tokens**2 - kept**2 + image_pairs)


def _routed_cost(
    config: DiTConfig, image_tokens: int, image_blocks: int, num_text: int, positions: int
) -> AttentionCost:
    text_blocks = ceil(num_text / config.attention_tile**2)
    blocks = text_blocks + image_blocks
    seen = min(max(kept_blocks(config, blocks), text_blocks + 1), blocks) - text_blocks
    image_pairs = image_tokens * seen * image_tokens // image_blocks
    pairs = (num_text + image_tokens) ** 2 - image_tokens**2 + image_pairs
    return AttentionCost(positions=positions, pairs=pairs, routing_pairs=blocks**2)


def stretch_starts(kinds: Sequence[object], cut: int | None = None) -> list[int]:
    """For each block the first of the consecutive blocks of its kind, which run on the same tokens in one order and
    share their routed choices. cut: a block that begins anew in any case."""
    starts: list[int] = []
    for index, kind in enumerate(kinds):
        alike = index > 0 and index != cut and kind == kinds[index - 1]
        starts.append(starts[-1] if alike else index)
    return starts


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
