"""What a forward pass of a network over latents costs, in floating-point operations (one multiply-add is two).

Pure arithmetic. With `as_published` the multiply-adds are those of DiT's and SparseDiT's papers: 118.62 G for DiT-XL/2
at 256 pixels, 68.15 G for its layout 2/4/2 on 8 x 8 sparse tokens.
"""

from collections.abc import Container
from math import prod

from mezzotint.dit.density import Grid
from mezzotint.dit.latent_config import ClassDiTConfig, LatentConfig, PixArtConfig, VideoDiTConfig
from mezzotint.dit.segment_flops import TokenCounts, block_flops, mlp_flops
from mezzotint.dit.segment_layout import module_span

TIME_FEATURES = 256
PIXART_TEXT_TOKENS = 120


def latent_flops(
    config: ClassDiTConfig | PixArtConfig, grid: Grid, sparse_grid: Grid | None = None, *,
    num_text_tokens: int = PIXART_TEXT_TOKENS, as_published: bool = False, modules: bool = True,
) -> int:
    """FLOPs of one pass on one sample: a picture, or a clip of config.num_frames frames.

    grid, sparse_grid: rows and columns of all tokens and of the sparse ones (of a frame); None takes the config's
    default. num_text_tokens: for PixArt only. as_published: see `segment_flops.block_flops`.
    modules: False leaves the sparse-dense modules out, as in a pass that takes their part from a cache.
    Raises ValueError where the sparse grid is larger than the full one.
    """
    sparse = prod(config.sparse_grid(sparse_grid, grid))
    text = num_text_tokens if isinstance(config, PixArtConfig) else 0
    tokens = TokenCounts(dense=prod(grid), sparse=sparse, cross_text=text)
    frames = config.num_frames if isinstance(config, VideoDiTConfig) else 1
    total = frames * _patch_flops(config, tokens.dense)
    total += _text_condition(config, text) if isinstance(config, PixArtConfig) else _class_condition(config)
    left_out: Container[int] = () if modules or config.segments is None else module_span(config.segments)
    for index, role in enumerate(config.roles):
        if index in left_out:
            continue
        total += _modulation_flops(config)
        total += frames * block_flops(
            config, role, tokens, as_published=as_published, readd_positions=config.readd_positions
        )
        total += _temporal_flops(config, tokens.of(role)) if isinstance(config, VideoDiTConfig) else 0
    return total


def _patch_flops(config: LatentConfig, num_tokens: int) -> int:
    return 2 * num_tokens * config.hidden_size * (config.patch_values + config.output_values)


def _embed_flops(in_size: int, out_size: int) -> int:
    """Two Linears: of features to the size, and on."""
    return 2 * (in_size * out_size + out_size * out_size)


def _class_condition(config: ClassDiTConfig) -> int:
    """Embedded time, and the modulation of the last layer."""
    c = config.hidden_size
    embeddings = config.num_layers if config.condition_per_block else 1
    return embeddings * _embed_flops(TIME_FEATURES, c) + 2 * 2 * c * c


def _modulation_flops(config: ClassDiTConfig | PixArtConfig) -> int:
    """The six vectors of one block, or of a pair of them in space and time; PixArt's blocks share one table."""
    blocks = 0 if isinstance(config, PixArtConfig) else 2 if isinstance(config, VideoDiTConfig) else 1
    return blocks * 2 * 6 * config.hidden_size**2


def _text_condition(config: PixArtConfig, num_text_tokens: int) -> int:
    """Embedded time, sizes and text, and one modulation table."""
    c = config.hidden_size
    sizes = 3 * _embed_flops(TIME_FEATURES, c // 3) if config.size_conditions else 0
    return _embed_flops(TIME_FEATURES, c) + sizes + num_text_tokens * _embed_flops(config.text_size, c) + 2 * 6 * c * c


def _temporal_flops(config: VideoDiTConfig, places: int) -> int:
    """One temporal block: each of the places of a frame attends over the frames."""
    c, frames = config.hidden_size, config.num_frames
    positions = places * frames
    return 2 * positions * 4 * c * c + 4 * positions * frames * c + mlp_flops(config, positions)
