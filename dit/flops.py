"""What a forward pass costs, in floating-point operations (one multiply-add is two). Pure arithmetic."""

from collections.abc import Collection
from dataclasses import dataclass
from math import prod

from mezzotint.dit.attention_cost import AttentionCost, Grid, attention_cost, kept_attention_cost, stretch_starts
from mezzotint.dit.config import PLACE_FEATURES, DiTConfig
from mezzotint.dit.expert_share import expert_flops
from mezzotint.dit.segment_flops import TokenCounts, mixing_flops, mlp_flops, text_flops
from mezzotint.dit.segment_layout import SPARSE_ROLES, Role, module_span, sparse_grid_of


def forward_flops(
    config: DiTConfig, grid: Grid, num_text_tokens: int | None = None, *, sparse_grid: Grid | None = None,
    modules: bool = True, kept: int | None = None, bypass: tuple[int, int] | None = None,
) -> int:
    """FLOPs of one forward pass on one picture of a grid of (rows, columns) tokens: matrix products and attention;
    norms and gates are left out.

    sparse_grid: rows and columns of the sparse image tokens, for a network with segments; None is the full grid.
    modules: False leaves the sparse-dense modules out, as in a pass that takes their part from a cache.
    kept, bypass: how many image tokens are kept, and what becomes of the others, as in `DiT.forward`. With windows the
        price is the mean over tokens that are kept at random.
    Raises ValueError where the sparse grid is larger than the full grid.
    """
    text = config.max_text_tokens if num_text_tokens is None else num_text_tokens
    whole, cross = (text, 0) if config.text_conditioning == "joint" else (0, text)
    sparse_sides = sparse_grid_of(config.segments, sparse_grid, grid)
    every = _Tokens(prod(grid) + whole, attention_cost(config, grid, whole))
    some = every if kept is None else _Tokens(kept + whole, kept_attention_cost(config, grid, whole, kept))
    cells = prod(sparse_sides)
    sparse = some if sparse_sides == grid else _Tokens(cells + whole, attention_cost(config, sparse_sides, whole))
    pooling = 0 if kept is None or sparse_sides == grid else 2 * cells * kept * config.hidden_size
    price = _Price(config, whole, cross, sparse, pooling)
    dense = [some] * config.num_layers
    if bypass:
        dense = [some if bypass[0] <= index < bypass[1] else every for index in range(config.num_layers)]
    left_out: Collection[int] = () if modules or config.segments is None else module_span(config.segments)
    blocks = price.blocks(["dense"] * config.mixer_layers, config.expert_mixer_blocks, [every] * config.mixer_layers)
    blocks += price.blocks(config.roles, config.expert_blocks, dense, left_out)
    answered = prod(grid) if bypass or kept is None else kept
    return _embedding_flops(config, prod(grid), text) + blocks + _output_flops(config, answered, prod(grid))


def block_flops(config: DiTConfig, grid: Grid, num_text_tokens: int) -> int:
    """FLOPs of one dense transformer block, which chooses its own blocks of attention where they are routed."""
    whole, cross = (num_text_tokens, 0) if config.text_conditioning == "joint" else (0, num_text_tokens)
    every = _Tokens(prod(grid) + whole, attention_cost(config, grid, whole))
    return _Price(config, whole, cross, every, 0).blocks(["dense"], (), [every])


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Tokens of one density, the whole ones (text in front) counted in, and what self-attention over them costs."""

    count: int
    cost: AttentionCost


@dataclass(frozen=True, slots=True)
class _Price:
    """whole, cross: text tokens in the sequence, and beside it. sparse: the sparse tokens. pooling: of the kept
    tokens by a product, FLOPs."""

    config: DiTConfig
    whole: int
    cross: int
    sparse: _Tokens
    pooling: int

    def blocks(
        self, roles: list[Role] | tuple[Role, ...], with_experts: Collection[int], dense: list[_Tokens],
        left_out: Collection[int] = (),
    ) -> int:
        """Blocks in order. dense: the dense tokens at each."""
        cut = left_out.stop if isinstance(left_out, range) else None
        starts = stretch_starts([(role, tokens) for role, tokens in zip(roles, dense, strict=True)], cut)
        share = self.config.attention_share_layers
        return sum(
            self._block(role, index in with_experts, dense[index], (index - starts[index]) % share == 0)
            for index, role in enumerate(roles) if index not in left_out
        )

    def _block(self, role: Role, with_experts: bool, dense: _Tokens, chooses: bool) -> int:
        c = self.config.hidden_size
        own = self.sparse if role in SPARSE_ROLES else dense
        if role in ("dense", "sparse"):
            positions, cost = own.cost.positions, own.cost
            mixing = 2 * positions * 4 * c * c + 4 * cost.pairs * c + 2 * chooses * cost.routing_pairs * c
        else:
            positions = own.count
            mixing = mixing_flops(c, role, TokenCounts(dense=dense.count, sparse=self.sparse.count, whole=self.whole))
            mixing += self.pooling if role == "generation" else 0
        return mixing + text_flops(self.config, positions, self.cross) + self._feed(with_experts, own.count, positions)

    def _feed(self, with_experts: bool, num_tokens: int, positions: int) -> int:
        config = self.config
        if not with_experts:
            return mlp_flops(config, positions)
        return expert_flops(
            config.hidden_size, config.mlp_size, config.num_experts, config.expert_capacity, num_tokens, positions
        )


def _output_flops(config: DiTConfig, num_answered: int, num_image_tokens: int) -> int:
    """num_answered: tokens that reach the last layer."""
    last = 2 * num_answered * config.hidden_size * config.output_values
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
