"""Tile order: the tokens of an image or video grid, sorted so that each block of tokens is one tile of the grid.

In raster order a block of 64 tokens is a strip one token high; a window around it needs many more blocks than a
window around an 8 x 8 tile. Shape suffixes: P tiles, A axes of the grid.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mezzotint.kernels.arguments import check_kind, is_whole
from mezzotint.kernels.layout import BlockLayout
from mezzotint.kernels.layout_check import BLOCK_SIZES
from mezzotint.kernels.layout_conversion import whole_lengths


@dataclass(frozen=True, eq=False, kw_only=True)
class TileOrder:
    """Where each token of a grid goes; made by `tile_order`.

    Tiles follow one another in raster order. A tile that overhangs the grid is padded to a whole block, its valid
    tokens first; a grid of one axis keeps its order and ends in a ragged block instead.

    Fields:
        grid, tile: tokens along each axis, e.g. (rows, columns) or (frames, rows, columns).
        coords: int64 [P, A], each tile's place along each axis, counted in tiles.
        lengths: int32 [P], valid tokens of each tile.
        perm, inv_perm: as in BlockLayout; None for one axis.
    """

    grid: tuple[int, ...]
    tile: tuple[int, ...]
    coords: Tensor
    lengths: Tensor
    perm: Tensor | None
    inv_perm: Tensor | None

    @property
    def num_tiles(self) -> tuple[int, ...]:
        """Tiles along each axis."""
        return tuple(-(-size // tile) for size, tile in zip(self.grid, self.tile, strict=True))

    @property
    def num_tokens(self) -> int:
        """Tokens of the grid."""
        return math.prod(self.grid)

    @property
    def num_positions(self) -> int:
        """Positions of the sequence, padding of tiles included."""
        return self.num_tokens if self.perm is None else self.perm.numel()

    def regions(self, region: tuple[int, ...]) -> Tensor:
        """The region of the grid that each tile lies in, int64 [P], numbered in raster order.

        region: tokens along each axis, multiples of the tile's (ValueError otherwise).
        """
        region = sides_of("region", region, len(self.tile))
        if any(size % side for size, side in zip(region, self.tile, strict=True)):
            raise ValueError(f"region is {region}; expected multiples of the tile {self.tile}")
        per_region = [size // side for size, side in zip(region, self.tile, strict=True)]
        num_regions = [-(-tiles // per) for tiles, per in zip(self.num_tiles, per_region, strict=True)]
        return _raster(self.coords // torch.tensor(per_region, device=self.coords.device), num_regions)

    def layout(self, mask: Tensor) -> BlockLayout:
        """A layout over this order; mask is bool [P, P], or [Hx, P, P] with one mask a query head.

        Raises ValueError for another mask.
        """
        check_kind("mask", mask, Tensor)
        tiles = len(self.coords)
        if mask.dim() not in (2, 3) or mask.shape[-2:] != (tiles, tiles):
            raise ValueError(f"mask has shape {list(mask.shape)}; expected [{tiles}, {tiles}], maybe for each head")
        lengths = None if self.num_positions == self.num_tokens else self.lengths
        return BlockLayout.from_dense(
            mask.reshape(1, -1, tiles, tiles),
            block_q=math.prod(self.tile),
            block_k=math.prod(self.tile),
            num_q=self.num_positions,
            num_k=self.num_positions,
            q_len=lengths,
            k_len=lengths,
            perm=self.perm,
            inv_perm=self.inv_perm,
            validate=False,
        )


def tile_order(grid: tuple[int, ...], tile: tuple[int, ...], device: torch.device | str | None = None) -> TileOrder:
    """The tile order of a grid; the last few are kept, so asking again costs nothing.

    grid and tile hold tokens along each axis; a tile has 16, 32, 64 or 128 tokens. Raises ValueError otherwise.
    """
    grid = sides_of("grid", grid)
    tile = sides_of("tile", tile, len(grid))
    if math.prod(tile) not in BLOCK_SIZES:
        raise ValueError(f"tile is {tile}, {math.prod(tile)} tokens; expected one of {BLOCK_SIZES}")
    return _build(grid, tile, torch.empty(0, device=device).device)


def sides_of(name: str, sides: object, num_axes: int | None = None) -> tuple[int, ...]:
    """Tokens along each axis of a grid; None is any number of axes above 0.

    Raises ValueError for another number of them, and for what are no whole numbers of at least 1.
    """
    given = tuple(sides) if isinstance(sides, Sequence) else ()
    whole = all(is_whole(side) and side >= 1 for side in given)
    if not given or not whole or num_axes not in (None, len(given)):
        axes = "axis" if num_axes is None else f"of the grid's {num_axes} axes"
        raise ValueError(f"{name} is {sides!r}; expected at least 1 token along each {axes}")
    return given


@functools.lru_cache(maxsize=32)
# What is kept must serve training too, and tensors made in inference mode cannot be saved for a backward.
@torch.inference_mode(False)
def _build(grid: tuple[int, ...], tile: tuple[int, ...], device: torch.device) -> TileOrder:
    coords_PA = _places([-(-size // side) for size, side in zip(grid, tile, strict=True)], device)
    if len(grid) == 1:
        lengths = whole_lengths(grid[0], tile[0], device)
        return TileOrder(grid=grid, tile=tile, coords=coords_PA, lengths=lengths, perm=None, inv_perm=None)
    tokens = coords_PA[:, None] * torch.tensor(tile, device=device) + _places(tile, device)
    inside = (tokens < torch.tensor(grid, device=device)).all(-1)
    raster = _raster(tokens, grid)
    valid_first = (~inside).to(torch.uint8).argsort(dim=-1, stable=True)
    raster, inside = raster.gather(1, valid_first), inside.gather(1, valid_first)
    # Padding names its tile's first token, which lies inside the grid whatever the tile overhangs.
    perm = torch.where(inside, raster, raster[:, :1]).view(-1)
    positions = inside.view(-1).nonzero().squeeze(-1)
    inv_perm = torch.empty(math.prod(grid), dtype=torch.int64, device=device)
    inv_perm[perm[positions]] = positions
    lengths = inside.sum(-1, dtype=torch.int32)
    return TileOrder(grid=grid, tile=tile, coords=coords_PA, lengths=lengths, perm=perm, inv_perm=inv_perm)


def _raster(places: Tensor, sizes: Sequence[int]) -> Tensor:
    """Index tuples [..., axes] -> their numbers in raster order; the opposite of `_places` below `sizes`."""
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    return (places * torch.tensor(strides, device=places.device)).sum(-1)


def _places(sizes: Sequence[int], device: torch.device) -> Tensor:
    """All index tuples below `sizes` in raster order, int64 [prod(sizes), axes]."""
    axes = torch.meshgrid(*(torch.arange(size, device=device) for size in sizes), indexing="ij")
    return torch.stack([axis.reshape(-1) for axis in axes], dim=-1)
