"""What the tokens of a block see beside themselves."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from mezzotint.dit.attention import Rope
from mezzotint.dit.segments import TokenGrids
from mezzotint.dit.sparse_attention import SparseAttention


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Surroundings:
    """Given to each block of a pass; what a network does not have stays None.

    rope: rotary positions of the block's tokens.
    sparse: the pattern of self-attention; None is full.
    real: places of the tokens in the sequence, int64 [R], where it holds padding besides; None where all are tokens.
    text, text_mask: text tokens [B, L, C] for cross-attention, and which of them count, bool [B, L].
    other: tokens of the other density [B, M, C], which generation and recovery attend to; other_rope: their positions.
    grids: the grids of both densities; frames: how many maps of tokens the sequence holds.
    """

    rope: Rope | None = None
    sparse: SparseAttention | None = None
    real: Tensor | None = None
    text: Tensor | None = None
    text_mask: Tensor | None = None
    other: Tensor | None = None
    other_rope: Rope | None = None
    grids: TokenGrids | None = None
    frames: int = 1

    def of_rows(self, rows: Sequence[int] | None) -> "Surroundings":
        """The same for some rows of the batch; None is all of them."""
        if rows is None or self.text is None:
            return self
        return replace(self, text=self.text[rows], text_mask=None if self.text_mask is None else self.text_mask[rows])

    def seeing(self, other: Tensor | None, grids: TokenGrids) -> "Surroundings":
        """The same with tokens of the other density."""
        return replace(self, other=other, grids=grids)
