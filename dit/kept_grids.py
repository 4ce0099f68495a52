"""Pooling and spreading where each picture keeps only some of its tokens: the cells stay those of the whole grid.

Shape suffixes: B batch, N tokens of the grid, K kept tokens, M cells, C hidden size.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from mezzotint.dit.density import Grid, cell_bounds
from mezzotint.dit.segments import TokenGrids, nearest_cells


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class KeptTokenGrids(TokenGrids):
    """keep: numbers of the kept tokens of `full`, int64 [B, K], in the order in which they lie in the sequence.

    A sparse token is the mean of its cell's kept tokens. A cell without any takes the mean of all kept ones, so that
    every picture has the same tokens at both densities and nothing has to be masked.
    """

    keep: Tensor

    def pool(self, dense_BNC: Tensor) -> Tensor:
        """[B, whole + K, C] to [B, whole + M, C]; on the full grid every kept token stays itself, so M is K."""
        if self.full == self.sparse:
            return dense_BNC
        pooled = self._shares(dense_BNC.dtype) @ dense_BNC[:, self.whole :]
        return torch.cat([dense_BNC[:, : self.whole], pooled], dim=1) if self.whole else pooled

    def spread(self, sparse_BMC: Tensor) -> Tensor:
        """Each cell's token at the kept tokens nearest to it: [B, M, C] to [B, K, C]."""
        if self.full == self.sparse:
            return sparse_BMC
        cells_BK = nearest_cells(self.sparse, self.full, self.keep.device)[self.keep]
        return sparse_BMC.gather(1, cells_BK[..., None].expand(-1, -1, sparse_BMC.shape[2]))

    def _shares(self, dtype: torch.dtype) -> Tensor:
        """How much of each kept token a cell takes, [B, M, K]; a cell's shares add up to 1."""
        inside_BMK = _cells_of_tokens(self.full, self.sparse, self.keep.device)[self.keep].transpose(1, 2)
        count_BM1 = inside_BMK.sum(dim=2, keepdim=True)
        among = torch.where(count_BM1 > 0, count_BM1, self.keep.shape[1])
        shares = (inside_BMK | (count_BM1 == 0)).to(torch.promote_types(dtype, torch.float32)) / among
        return shares.to(dtype)


@lru_cache(maxsize=64)
def _cells_of_tokens(full: Grid, sparse: Grid, device: torch.device) -> Tensor:
    """Which cells each token lies in, bool [N, M]; neighbouring cells may share one."""
    with torch.inference_mode(False):  # kept, so it may be made while drawing and be used while training
        rows, columns = (
            torch.stack([
                (torch.arange(side, device=device) >= start) & (torch.arange(side, device=device) < end)
                for start, end in cell_bounds(side, cells)
            ], dim=1)
            for side, cells in zip(full, sparse, strict=True)
        )
        return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(2).flatten(0, 1)
