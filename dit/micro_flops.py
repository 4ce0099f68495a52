"""What a forward pass of MicroDiT costs, in floating-point operations (one multiply-add is two). Pure arithmetic."""

from math import prod

from mezzotint.dit.density import Grid
from mezzotint.dit.expert_share import expert_flops
from mezzotint.dit.micro_config import TIME_FEATURES, MicroBlockShape, MicroDiTConfig

CLIP_TOKENS = 77


def micro_flops(
    config: MicroDiTConfig, grid: Grid, num_text_tokens: int = CLIP_TOKENS, *, kept: int | None = None,
    bypass: tuple[int, int] | None = None,
) -> int:
    """FLOPs of one pass on one latent of a grid of (rows, columns) tokens: matrix products and attention; norms and
    gates are left out.

    kept: tokens that go through the backbone; None is all of them. bypass: the others pass these blocks by, as
    `MicroDiT.forward` has it; None drops them.
    """
    total = prod(grid)
    running = total if kept is None else kept
    behind_mixer = total if bypass else running
    sizes = [behind_mixer] * config.num_layers
    if bypass:
        sizes[slice(*bypass)] = [running] * (bypass[1] - bypass[0])
    blocks = [*zip(config.mixer_shapes, [total] * config.mixer_layers, strict=True),
              *zip(config.block_shapes, sizes, strict=True)]
    return (
        2 * (total + behind_mixer) * config.hidden_size * config.patch_values
        + _condition_flops(config, num_text_tokens)
        + _map_flops(config, total + behind_mixer + num_text_tokens)
        + sum(micro_block_flops(shape, tokens, num_text_tokens) for shape, tokens in blocks)
    )


def micro_block_flops(shape: MicroBlockShape, num_tokens: int, num_text_tokens: int) -> int:
    """FLOPs of one block, its modulation included."""
    c, a = shape.size, shape.attention_size
    attention = 2 * num_tokens * 4 * c * a + 4 * num_tokens**2 * a
    text = 2 * (2 * num_tokens + 2 * num_text_tokens) * c * c + 4 * num_tokens * num_text_tokens * c
    modulation = 2 * shape.condition_size * 6 * c
    if not shape.num_experts:
        return attention + text + modulation + 2 * num_tokens * 3 * c * shape.mlp_size
    fed = expert_flops(c, shape.mlp_size, shape.num_experts, shape.expert_capacity, num_tokens, num_tokens)
    return attention + text + modulation + fed


def _condition_flops(config: MicroDiTConfig, num_text_tokens: int) -> int:
    """Time, text tokens with their block, pooled text, and the last layer's modulation."""
    c = config.hidden_size
    text = 2 * num_text_tokens * (config.text_size * c + c * c)
    block = 2 * num_text_tokens * (4 * c * c + 3 * c * config.text_mlp_size) + 4 * num_text_tokens**2 * c
    return 2 * (TIME_FEATURES * c + c * c) + text + block + 2 * 2 * c * c + 2 * c * 2 * c


def _map_flops(config: MicroDiTConfig, num_tokens: int) -> int:
    """From the backbone's width to the patch-mixer's and back."""
    if not config.mixer_layers or config.mixer_size == config.hidden_size:
        return 0
    return 2 * num_tokens * config.hidden_size * config.mixer_size
