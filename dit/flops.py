"""What a forward pass costs, in floating-point operations (one multiply-add is two). Pure arithmetic."""

from math import ceil, prod

from mezzotint.dit import segment_flops
from mezzotint.dit.attention_cost import Grid, attention_cost
from mezzotint.dit.config import PLACE_FEATURES, DiTConfig
from mezzotint.dit.segment_flops import TokenCounts, mlp_flops, text_flops
from mezzotint.dit.segment_layout import sparse_grid_of


def forward_flops(
    config: DiTConfig, grid: Grid, num_text_tokens: int | None = None, *, sparse_grid: Grid | None = None
) -> int:
    """FLOPs of one forward pass on one picture of a grid of (rows, columns) tokens: matrix products and attention;
    norms and gates are left out.

    sparse_grid: rows and columns of the sparse image tokens, for a network with segments; None is the full grid.
    Raises ValueError where it is larger than the full grid.
    """
    text = config.max_text_tokens if num_text_tokens is None else num_text_tokens
    sparse = sparse_grid_of(config.segments, sparse_grid, grid)
    blocks = _segment_flops(config, grid, sparse, text) if config.segments else _dense_flops(config, grid, text)
    return _embedding_flops(config, prod(grid), text) + blocks + _output_flops(config, prod(grid))


def _dense_flops(config: DiTConfig, grid: Grid, text: int) -> int:
    blocks = config.num_layers * block_flops(config, grid, text)
    return blocks - _shared_choices(config) * _routing_flops(config, grid, text)


def _segment_flops(config: DiTConfig, grid: Grid, sparse_grid: Grid, text: int) -> int:
    whole, cross = (text, 0) if config.text_conditioning == "joint" else (0, text)
    tokens = TokenCounts(dense=prod(grid) + whole, sparse=prod(sparse_grid) + whole, whole=whole, cross_text=cross)
    return sum(segment_flops.block_flops(config, role, tokens) for role in config.roles)


def block_flops(config: DiTConfig, grid: Grid, num_text_tokens: int) -> int:
    """FLOPs of one dense transformer block, which chooses its own blocks of attention where they are routed."""
    c = config.hidden_size
    joint = config.text_conditioning == "joint"
    cost = attention_cost(config, grid, num_text_tokens if joint else 0)
    attention = 2 * cost.positions * c * 4 * c + 4 * cost.pairs * c + _routing_flops(config, grid, num_text_tokens)
    text = text_flops(config, cost.positions, 0 if joint else num_text_tokens)
    return attention + text + mlp_flops(config, cost.positions)


def _shared_choices(config: DiTConfig) -> int:
    """Layers that take up the routed choice of a layer before them."""
    return config.num_layers - ceil(config.num_layers / config.attention_share_layers)


def _routing_flops(config: DiTConfig, grid: Grid, num_text_tokens: int) -> int:
    """FLOPs of choosing the blocks of one layer; 0 without routing."""
    text = num_text_tokens if config.text_conditioning == "joint" else 0
    return 2 * attention_cost(config, grid, text).routing_pairs * config.hidden_size


def _output_flops(config: DiTConfig, num_image_tokens: int) -> int:
    last = 2 * num_image_tokens * config.hidden_size * config.output_values
    if config.patch_space == "components":
        last += 2 * num_image_tokens * config.patch_bottleneck * config.patch_values
    return last


def _embedding_flops(config: DiTConfig, num_image_tokens: int, num_text_tokens: int) -> int:
    c = config.hidden_size
    if config.patch_bottleneck:
        patches = 2 * num_image_tokens * config.patch_bottleneck * (config.patch_values + c)
    else:
        patches = 2 * num_image_tokens * config.patch_values * c
    places = 2 * num_image_tokens * PLACE_FEATURES * c if config.place_embedding else 0
    text = 2 * num_text_tokens * config.text_size * c
    # time MLP (256 -> C -> C), pooled text MLP (text -> C -> C), shared modulation table (C -> 6C), final (C -> 2C)
    condition = 2 * (256 * c + c * c) + 2 * (config.text_size * c + c * c) + 2 * c * 8 * c
    return patches + places + text + condition
