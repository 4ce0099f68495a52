"""Which image tokens of a training batch go through the backbone.

Dropped behind the first blocks (deferred masking, MicroDiT, arXiv 2407.15811, section 2.2), or led past some blocks
and back (TREAD, arXiv 2501.04765). Shape suffixes: B pictures, N tokens of a picture, K kept tokens, S squares.
"""

from math import prod

import torch
from torch import Tensor

from mezzotint.dit.density import Grid, grid_of_density
from mezzotint.dit.layers import patchify
from mezzotint.training.masking_config import MaskingConfig


def num_kept(config: MaskingConfig, num_tokens: int) -> int:
    """Tokens of a picture that are kept: int(N * (1 - ratio)), at least one."""
    return max(1, int(num_tokens * (1 - config.ratio)))


def draw_keep(config: MaskingConfig, batch: int, grid: Grid, generator: torch.Generator) -> Tensor | None:
    """Kept tokens of each of `batch` pictures, ascending: int64 [B, K] on the CPU; None where none is masked.

    grid: token rows and columns. Every token is kept equally often.
    """
    if config.ratio == 0:
        return None
    ranks = _ranks_of_groups if config.kind == "groups" else _ranks
    kept = ranks(config, batch, grid, generator).argsort(dim=1)[:, : num_kept(config, prod(grid))]
    return kept.sort(dim=1).values


def only_kept(x_BcHW: Tensor, keep_BK: Tensor, patch_size: int) -> Tensor:
    """The values of the kept patches [B, K, P]; patch_size 1 where x has one place a token."""
    patches_BNP = patchify(x_BcHW, patch_size)
    return patches_BNP.gather(1, keep_BK[..., None].expand(-1, -1, patches_BNP.shape[2]))


def grid_among_kept(sparse: Grid | None, full: Grid, kept: int) -> Grid | None:
    """The sparse grid that leaves as many of `kept` tokens as `sparse` leaves of all. The full grid and None stay: then
    each token stays itself."""
    if sparse is None or tuple(sparse) == tuple(full):
        return sparse
    return grid_of_density(prod(sparse) * kept / prod(full) ** 2, full)


def _ranks(config: MaskingConfig, batch: int, grid: Grid, generator: torch.Generator) -> Tensor:
    """Random numbers, fp64 [B, N]; those of the smallest are kept."""
    return torch.rand(batch, prod(grid), generator=generator, dtype=torch.float64)


def _ranks_of_groups(config: MaskingConfig, batch: int, grid: Grid, generator: torch.Generator) -> Tensor:
    """Tokens of one square lie side by side: the squares in random order, and each token in its square."""
    square_BN, count = _squares(config.group_size, batch, grid, generator)
    order_BS = torch.rand(batch, count, generator=generator).argsort(dim=1).argsort(dim=1)
    return order_BS.gather(1, square_BN) + _ranks(config, batch, grid, generator)


def _squares(side: int, batch: int, grid: Grid, generator: torch.Generator) -> tuple[Tensor, int]:
    """The number of each token's square [B, N], and how many squares there are.

    The net of squares is shifted at random in each picture, around the edges: so no token is kept more often.
    """
    counts = [-(-length // side) for length in grid]
    row, column = (
        (torch.arange(length) + torch.randint(length, (batch, 1), generator=generator)) % length // side
        for length in grid
    )
    return (row[:, :, None] * counts[1] + column[:, None, :]).flatten(1), prod(counts)
