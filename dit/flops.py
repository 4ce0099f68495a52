"""What a forward pass costs, in floating-point operations (one multiply-add is two). Pure arithmetic."""

from math import ceil, prod

from mezzotint.dit.attention_cost import Grid, attention_cost
from mezzotint.dit.config import PLACE_FEATURES, DiTConfig


def forward_flops(config: DiTConfig, grid: Grid, num_text_tokens: int | None = None) -> int:
    """FLOPs of one forward pass on one picture of a grid of (rows, columns) tokens: matrix products and attention;
    norms and gates are left out."""
    text = config.max_text_tokens if num_text_tokens is None else num_text_tokens
    num_image_tokens = prod(grid)
    return (
        _embedding_flops(config, num_image_tokens, text)
        + config.num_layers * block_flops(config, grid, text)
        - _shared_choices(config) * _routing_flops(config, grid, text)
        + _output_flops(config, num_image_tokens)
    )


def block_flops(config: DiTConfig, grid: Grid, num_text_tokens: int) -> int:
    """FLOPs of one transformer block, which chooses its own blocks of attention where they are routed."""
    c = config.hidden_size
    joint = config.text_conditioning == "joint"
    cost = attention_cost(config, grid, num_text_tokens if joint else 0)
    attention = 2 * cost.positions * c * 4 * c + 4 * cost.pairs * c + _routing_flops(config, grid, num_text_tokens)
    if not joint:
        attention += 2 * (cost.positions * 2 + num_text_tokens * 2) * c * c
        attention += 4 * cost.positions * num_text_tokens * c
    mlp = 2 * cost.positions * c * config.mlp_size * (3 if config.mlp == "swiglu" else 2)
    return attention + mlp


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
