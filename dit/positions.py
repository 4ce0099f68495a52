"""Positions of tokens on a grid of rows and columns: rotary (2D axial RoPE), and fixed sines and cosines.

Rotary: half of a head's channel pairs turn with the row, half with the column, so any height x width works and a
shift of the whole grid changes nothing. Text tokens are not turned.

Shape suffixes: N tokens, D head channels, F frequencies.
"""

import torch
from torch import Tensor

from mezzotint.dit.config import PLACE_FEATURES
from mezzotint.dit.density import Grid, cell_bounds


def rope_table(
    grid: Grid, head_dim: int, theta: float, num_text_tokens: int = 0, *, cells: Grid | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines for `num_text_tokens` unturned tokens followed by a rows x columns grid.

    cells: pool the grid to one of these sides; each cell's token lies at the centre of the tokens that it holds.
    Returns two fp32 tensors [N, D], on the CPU, for `apply_rope`. `head_dim` must be a multiple of 4.
    """
    rows, columns = (_centres(side, count) for side, count in zip(grid, cells or grid, strict=True))
    frequencies_F = theta ** -(torch.arange(head_dim // 4, dtype=torch.float64) / (head_dim // 4))
    row_NF = rows.repeat_interleave(len(columns))[:, None] * frequencies_F
    column_NF = columns.repeat(len(rows))[:, None] * frequencies_F
    angles = torch.cat([row_NF, column_NF], dim=1)
    angles = torch.cat([angles.new_zeros(num_text_tokens, head_dim // 2), angles])
    angles_ND = torch.cat([angles, angles], dim=1)
    return angles_ND.cos().float(), angles_ND.sin().float()


def _centres(side: int, cells: int) -> Tensor:
    """The middle place of each cell along one axis, fp64."""
    return torch.tensor([(start + end - 1) / 2 for start, end in cell_bounds(side, cells)], dtype=torch.float64)


def place_table(grid: Grid) -> Tensor:
    """Where each token of a rows x columns grid lies from the centre, as sines and cosines: fp32 [N, 64], on the CPU.

    Wavelengths run from 2 to 128 tokens. Rotary positions tell only how two tokens lie to each other; what to draw
    at the left edge needs the place itself (Vaswani and others, arXiv 1706.03762, section 3.5, over two axes).
    """
    rows, columns = grid
    count = PLACE_FEATURES // 4  # sines and cosines of rows and of columns
    frequencies_F = torch.pi * 64.0 ** -(torch.arange(count, dtype=torch.float64) / (count - 1))
    row_N = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns) - (rows - 1) / 2
    column_N = torch.arange(columns, dtype=torch.float64).repeat(rows) - (columns - 1) / 2
    angles = torch.cat([row_N[:, None] * frequencies_F, column_N[:, None] * frequencies_F], dim=1)
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def sincos_table(grid: Grid, size: int, base: Grid, scale: float = 1.0) -> Tensor:
    """Fixed embeddings of a rows x columns grid, fp32 [N, size] (DiT section 3.2; masked autoencoders' code).

    The first half of the channels tells the column, the second the row, each by sines and then cosines. Both sides are
    stretched to those of `base`, the grid of training, and divided by `scale`. size: a multiple of 4.
    """
    rows, columns = (
        torch.arange(side, dtype=torch.float32) / (side / trained) / scale
        for side, trained in zip(grid, base, strict=True)
    )
    by_column = line_table(columns, size // 2).repeat(grid[0], 1)
    return torch.cat([by_column, line_table(rows, size // 2).repeat_interleave(grid[1], dim=0)], dim=1)


def line_table(places_N: Tensor, size: int) -> Tensor:
    """Sines, then cosines of places along one axis: fp32 [N, size], size even."""
    frequencies_F = 10_000.0 ** -(torch.arange(size // 2, dtype=torch.float64) / (size // 2))
    angles = places_N.double()[:, None] * frequencies_F
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def apply_rope(x: Tensor, cos_ND: Tensor, sin_ND: Tensor) -> Tensor:
    """Turn channel pairs (d, d + D/2) of x [..., N, D] by the table's angles."""
    first, second = x.chunk(2, dim=-1)
    return x * cos_ND + torch.cat([-second, first], dim=-1) * sin_ND
