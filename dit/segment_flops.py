"""What one block costs by its role in a segment, in floating-point operations (one multiply-add is two).

Pure arithmetic. Norms, gates and pooling itself are left out.
"""

from dataclasses import dataclass

from mezzotint.dit.block_shape import BlockShape
from mezzotint.dit.segment_layout import SPARSE_ROLES, Role


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenCounts:
    """Tokens of one sequence. dense, sparse: at both densities, the whole ones (text in front) counted in both.
    cross_text: text tokens that are read by cross-attention."""

    dense: int
    sparse: int
    whole: int = 0
    cross_text: int = 0

    def of(self, role: Role) -> int:
        """Tokens that come out of a block."""
        return self.sparse if role in SPARSE_ROLES else self.dense


def block_flops(
    shape: BlockShape, role: Role, tokens: TokenCounts, *, as_published: bool = False, readd_positions: bool = False
) -> int:
    """FLOPs of one block with full attention on one sequence, its modulation left out.

    as_published: count values and projection of every token in a pooling block, and merging after spreading, as the
    figures of arXiv 2412.06028 do; computed on the mean and before spreading they give the same for less.
    """
    own = tokens.of(role)
    mixing = mixing_flops(shape.hidden_size, role, tokens, as_published, readd_positions)
    return mixing + text_flops(shape, own, tokens.cross_text) + mlp_flops(shape, own)


def mixing_flops(
    c: int, role: Role, tokens: TokenCounts, as_published: bool = False, readd_positions: bool = False
) -> int:
    """FLOPs of full attention of a block c wide, in its role, and of merging. The rest as in `block_flops`."""
    merging = _merging_flops(c, tokens, as_published or readd_positions) if role == "recovery" else 0
    return merging + _attention_flops(c, role, tokens, as_published)


def _attention_flops(c: int, role: Role, tokens: TokenCounts, as_published: bool) -> int:
    own = tokens.of(role)
    if role == "pool":
        return 2 * (own if as_published else 1) * 2 * c * c
    if role in ("dense", "sparse"):
        return 2 * own * 4 * c * c + 4 * own * own * c
    other = tokens.dense if role == "generation" else tokens.sparse
    return 2 * (own + other) * 2 * c * c + 4 * own * other * c


def _merging_flops(c: int, tokens: TokenCounts, spread_first: bool) -> int:
    dense, sparse = tokens.dense - tokens.whole, tokens.sparse - tokens.whole
    return 2 * (dense + (dense if spread_first else sparse)) * c * c


def text_flops(shape: BlockShape, positions: int, text: int) -> int:
    """FLOPs of cross-attention from `positions` tokens to `text` text tokens; 0 without such text."""
    c = shape.hidden_size
    return 2 * (positions * 2 + text * 2) * c * c + 4 * positions * text * c if text else 0


def mlp_flops(shape: BlockShape, positions: int) -> int:
    """FLOPs of the feed-forward half."""
    return 2 * positions * shape.hidden_size * shape.mlp_size * (3 if shape.mlp == "swiglu" else 2)
