"""Sparse-dense token modules: pooling tokens to a grid, and spreading and merging them again.

FlexDiT / SparseDiT (arXiv 2412.06028, section 3). Of a pooling block only the mean of the values is left of
attention; generation pools the dense tokens to the sparse grid and lets them attend to the dense ones; sparse blocks
run on the sparse tokens alone; recovery spreads them over the dense tokens that entered the module, which then attend
to the sparse ones; dense blocks run on all. The sparse grid is an argument of a pass: one set of weights serves all.

Shape suffixes: B batch, T frames, N dense tokens, M sparse tokens, C hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mezzotint.dit.density import Grid


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenGrids:
    """The two grids of a pass, and how its tokens lie in a sequence.

    full, sparse: rows and columns of the dense and of the sparse tokens.
    whole: tokens in front (text) that are never pooled.
    frames: maps of tokens, one after the other; each is pooled by itself.
    positions: fixed embeddings of the dense tokens [N, C] that are added again at each change; None leaves them out.
    """

    full: Grid
    sparse: Grid
    whole: int = 0
    frames: int = 1
    positions: Tensor | None = None

    def pool(self, dense_BNC: Tensor) -> Tensor:
        """The mean of each cell's tokens: [B, whole + T N, C] to [B, whole + T M, C]."""
        pooled = self._each_map(dense_BNC[:, self.whole :], lambda x: average_cells(x, self.full, self.sparse))
        if self.positions is not None:
            pooled = pooled + self._pooled_positions()
        return torch.cat([dense_BNC[:, : self.whole], pooled], dim=1) if self.whole else pooled

    def spread(self, sparse_BMC: Tensor) -> Tensor:
        """Each cell's token at all of its places, without the whole tokens: [B, T M, C] to [B, T N, C]."""
        return self._each_map(sparse_BMC, lambda x: spread_cells(x, self.sparse, self.full))

    def _pooled_positions(self) -> Tensor:
        assert self.positions is not None
        return average_cells(self.positions[None], self.full, self.sparse).repeat(1, self.frames, 1)

    def _each_map(self, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        if self.full == self.sparse:
            return x
        if self.frames == 1:
            return change(x)
        maps = x.unflatten(1, (self.frames, -1)).flatten(0, 1)
        return change(maps).unflatten(0, (len(x), self.frames)).flatten(1, 2)


def average_cells(x_BNC: Tensor, full: Grid, sparse: Grid) -> Tensor:
    """Mean over the cells that `density.cell_bounds` cuts: [B, rows * columns, C] to a grid of fewer."""
    # Seen as a picture in channels-last order, so that nothing is copied before or after.
    picture_BCHW = x_BNC.unflatten(1, full).permute(0, 3, 1, 2)
    return F.adaptive_avg_pool2d(picture_BCHW, sparse).permute(0, 2, 3, 1).flatten(1, 2)


def spread_cells(x_BMC: Tensor, sparse: Grid, full: Grid) -> Tensor:
    """Nearest neighbour: the dense token (i, j) takes cell (i * rows' / rows, j * columns' / columns), rounded down."""
    return x_BMC.index_select(1, nearest_cells(sparse, full, x_BMC.device))


@lru_cache(maxsize=256)
def nearest_cells(sparse: Grid, full: Grid, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # kept, so it may be made while drawing and be used while training
        rows, columns = (
            torch.arange(side, device=device) * cells // side for side, cells in zip(full, sparse, strict=True)
        )
        return (rows[:, None] * sparse[1] + columns).flatten()


class Merge(nn.Module):
    """W1 * spread sparse tokens + W2 * dense tokens. It starts as the dense tokens alone."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.from_sparse = nn.Linear(hidden_size, hidden_size)
        self.from_dense = nn.Linear(hidden_size, hidden_size)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """W1 = 0, W2 = 1, no biases."""
        nn.init.zeros_(self.from_sparse.weight)
        nn.init.eye_(self.from_dense.weight)
        for linear in (self.from_sparse, self.from_dense):
            nn.init.zeros_(linear.bias)

    def forward(self, sparse_BMC: Tensor, dense_BNC: Tensor, grids: TokenGrids) -> Tensor:
        """Dense tokens [B, whole + T N, C]; the whole ones are the sparse side's, which has gone through its blocks."""
        cells = sparse_BMC[:, grids.whole :]
        if grids.positions is None:
            spread = grids.spread(self.from_sparse(cells))  # a Linear on M tokens, and not on their N copies
        else:
            spread = self.from_sparse(grids.spread(cells) + grids.positions.repeat(grids.frames, 1))
        merged = spread + self.from_dense(dense_BNC[:, grids.whole :])
        return torch.cat([sparse_BMC[:, : grids.whole], merged], dim=1) if grids.whole else merged
