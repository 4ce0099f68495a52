"""How self-attention sees the tokens of a pass: their rotary positions, which see which, and the order that this takes.

Blocks that change density, and pooling ones, need tokens row by row; blocks with a pattern need them tile by tile, with
padding where tiles are cut. So tokens are put in order before the first of several blocks that attend to themselves,
and back behind the last.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

from torch import Tensor, nn

from mezzotint.dit.attention import Rope
from mezzotint.dit.attention_cost import stretch_starts
from mezzotint.dit.block_order import ModulePass, Rows, RunBlock, Segmented, run_blocks, run_segments
from mezzotint.dit.blocks import ModulatedBlock
from mezzotint.dit.segment_layout import SPARSE_ROLES, Role, module_span
from mezzotint.dit.segments import TokenGrids
from mezzotint.dit.sparse_attention import SparseAttention
from mezzotint.dit.surroundings import Surroundings
from mezzotint.kernels import LayoutCache

SELF_ATTENDING: tuple[Role, ...] = ("dense", "sparse")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenView:
    """rope: positions of the tokens as they come, [N, D] each or [B, 1, N, D]. pattern: None is full attention.
    ordered_rope: positions in the order of the pattern."""

    rope: Rope
    pattern: SparseAttention | None
    ordered_rope: Rope

    @classmethod
    def of(cls, rope: Rope, pattern: SparseAttention | None) -> "TokenView":
        """rope: of the tokens as they come."""
        if pattern is None:
            return cls(rope=rope, pattern=None, ordered_rope=rope)
        arrange = pattern.layout.arrange
        return cls(rope=rope, pattern=pattern, ordered_rope=(arrange(rope[0]), arrange(rope[1])))


class Stretch:
    """Consecutive blocks of one role on the same tokens. share: layers that share a routed choice."""

    def __init__(self, view: TokenView, role: Role, first: int, share: int) -> None:
        self.view, self.role, self.first, self.last = view, role, first, first
        self._chosen = LayoutCache(layers=share)

    def run(
        self, index: int, x: Tensor, around: Surroundings, block: Callable[[Tensor, Surroundings], Tensor]
    ) -> Tensor:
        """One of the blocks, called with its tokens and what is around them; tokens come and go in order only between
        the first and the last."""
        pattern = self.view.pattern if self.role in SELF_ATTENDING else None
        if pattern is None:
            return block(x, replace(around, rope=self.view.rope))
        if index == self.first:
            x = pattern.layout.arrange(x)
        x = block(x, replace(
            around, rope=self.view.ordered_rope, sparse=pattern.in_layer(index - self.first, self._chosen),
            real=pattern.layout.inv_perm,
        ))
        return pattern.layout.restore(x) if index == self.last else x


def stretches(views: Sequence[TokenView], roles: Sequence[Role], share: int, cut: int | None = None) -> list[Stretch]:
    """For each block the stretch that it belongs to. views, roles: of each block, in order; equal roles have one view.
    cut: a block that begins a stretch in any case."""
    out: list[Stretch] = []
    for index, start in enumerate(stretch_starts(roles, cut)):
        out.append(Stretch(views[index], roles[index], index, share) if start == index else out[-1])
        out[-1].last = index
    return out


RunOne = Callable[..., Tensor]
"""(block, its tokens, what it is modulated by, what is around the tokens) to its tokens."""


class RunViewed:
    """Runs blocks on tokens as views show them. shared: what all blocks are modulated by, one row a picture; share:
    layers that share a routed choice."""

    def __init__(self, run: RunOne, shared: Tensor, around: Surroundings, share: int) -> None:
        self._run, self._shared, self._around, self._share = run, shared, around, share

    def blocks(self, blocks: nn.ModuleList, view: TokenView, tokens: Tensor, grids: TokenGrids) -> Tensor:
        """Dense blocks, one after the other."""
        roles: list[Role] = ["dense"] * len(blocks)
        return run_segments(roles, tokens, grids, self._on_rows(blocks, (view, view), grids, None, None))

    def segments(
        self, shape: Segmented, blocks: nn.ModuleList, dense: TokenView, sparse: TokenView, tokens: Tensor,
        grids: TokenGrids, module_pass: ModulePass | None,
    ) -> Tensor:
        """The blocks of a network at two densities, as `block_order.run_blocks` orders them."""
        cut = None if module_pass is None or shape.segments is None else module_span(shape.segments).stop

        def on_rows(rows: Rows) -> RunBlock:
            return self._on_rows(blocks, (dense, sparse), grids, rows, cut)

        return run_blocks(shape, tokens, grids, on_rows, module_pass)

    def _on_rows(
        self, blocks: nn.ModuleList, views: tuple[TokenView, TokenView], grids: TokenGrids, rows: Rows, cut: int | None
    ) -> RunBlock:
        around = replace(self._around, grids=grids).of_rows(rows)
        given = self._shared if rows is None else self._shared[rows]
        dense, sparse = views
        roles = [cast(ModulatedBlock, block).role for block in blocks]
        seen = [sparse if role in SPARSE_ROLES else dense for role in roles]
        plan = stretches(seen, roles, self._share, cut)

        def run_one(index: int, x: Tensor, other: Tensor | None) -> Tensor:
            unlike = dense if roles[index] in SPARSE_ROLES else sparse
            at = replace(around, other=other, other_rope=unlike.rope)
            return plan[index].run(index, x, at, lambda tokens, at: self._run(blocks[index], tokens, given, at))

        return run_one
