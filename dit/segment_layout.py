"""How a network is cut into segments of different token density (FlexDiT / SparseDiT, arXiv 2412.06028, section 3).

Depth = pool + modules * (generation + sparse + recovery + dense) + top. Pure arithmetic, no torch.
"""

import re
from dataclasses import dataclass
from typing import Literal, Self

from mezzotint.dit.density import Grid, check_sparse_grid

Role = Literal["pool", "generation", "sparse", "recovery", "dense"]
"""What a block does: see `segments`. Blocks of the top are dense."""

MODULE_ROLES: tuple[Role, ...] = ("generation", "sparse", "recovery", "dense")
"""The parts of a sparse-dense token module, in order."""

SPARSE_ROLES: tuple[Role, ...] = ("generation", "sparse")
"""Blocks whose tokens are sparse."""

_WRITTEN = re.compile(r"(\d+)\+(\d+)x\[(\d+),(\d+),(\d+),(\d+)\]\+(\d+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentLayout:
    """Blocks of each segment. For space-time networks a unit is a pair of a spatial and a temporal block.

    pool: pooling blocks at the bottom, on all tokens.
    modules: how many sparse-dense token modules follow.
    module: blocks of each module: generation, sparse, recovery, dense. Generation and recovery are one block each,
        as in every published layout.
    top: dense blocks at the end.
    Raises ValueError naming what is out of range.
    """

    pool: int
    modules: int
    module: tuple[int, int, int, int]
    top: int

    def __post_init__(self) -> None:
        numbers = (self.pool, self.modules, *self.module, self.top)
        if len(self.module) != 4 or min(numbers) < 0 or self.modules < 1:
            raise ValueError(f"segments is {self}; it needs at least one module of four block counts, none negative.")
        if self.module[0] != 1 or self.module[2] != 1:
            raise ValueError(f"segments is {self}; generation and recovery must be one block each, as in [1,3,1,1].")

    @classmethod
    def parse(cls, written: str) -> Self:
        """Read what str() writes, such as "1 + 4x[1,3,1,1] + 3". Raises ValueError when it is written otherwise."""
        match = _match(written)
        if match is None:
            raise ValueError(
                f"segments is {written!r}; it must be written as pool + modules x [generation, sparse, recovery, dense]"
                " + top, such as '1 + 4x[1,3,1,1] + 3'."
            )
        pool, modules, generation, sparse, recovery, dense, top = map(int, match.groups())
        return cls(pool=pool, modules=modules, module=(generation, sparse, recovery, dense), top=top)

    def __str__(self) -> str:
        return f"{self.pool} + {self.modules}x[{','.join(map(str, self.module))}] + {self.top}"

    @property
    def depth(self) -> int:
        """Blocks (or pairs of blocks) in all."""
        return self.pool + self.modules * sum(self.module) + self.top

    @property
    def span(self) -> range:
        """Indices of the modules' blocks; below are the pooling blocks, above the top."""
        return range(self.pool, self.depth - self.top)

    @property
    def roles(self) -> tuple[Role, ...]:
        """What each block does, in execution order."""
        pool, top = _repeat("pool", self.pool), _repeat("dense", self.top)
        module = [_repeat(role, count) for role, count in zip(MODULE_ROLES, self.module, strict=True)]
        return pool + sum(module, start=()) * self.modules + top


def _repeat(role: Role, count: int) -> tuple[Role, ...]:
    return (role,) * count


def _match(written: str) -> re.Match[str] | None:
    return _WRITTEN.fullmatch("".join(written.split()))


def roles_of(segments: str | None, depth: int) -> tuple[Role, ...]:
    """What each of `depth` blocks does under a written layout; all are dense under None.

    Raises ValueError when the layout does not add up to the depth.
    """
    if segments is None:
        return _repeat("dense", depth)
    layout = SegmentLayout.parse(segments)
    if layout.depth != depth:
        raise ValueError(f"segments is {str(layout)!r}; it adds up to {layout.depth} blocks, and there are {depth}.")
    return layout.roles


def module_span(segments: str | None) -> range:
    """Indices of the blocks of all sparse-dense token modules. Raises ValueError for a network without segments."""
    if segments is None:
        raise ValueError("segments is None; a network without segments has no sparse-dense token modules.")
    return SegmentLayout.parse(segments).span


def sparse_grid_of(segments: str | None, grid: Grid | None, full: Grid) -> Grid:
    """The grid of the sparse tokens of a pass: the one given, or the full one.

    Raises ValueError where it is larger than the full grid, or another than that for a network without segments.
    """
    if grid is None:
        return full
    check_sparse_grid(grid, full)
    if segments is None and tuple(grid) != full:
        raise ValueError(f"grid is {tuple(grid)}; this network has no segments, so it must be the full grid, {full}.")
    return grid[0], grid[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutPreset:
    """A layout for a known network. published: from the authors' training logs; the others are our choices."""

    layout: SegmentLayout
    published: bool
    note: str


def _preset(written: str, note: str, published: bool = False) -> LayoutPreset:
    return LayoutPreset(layout=SegmentLayout.parse(written), published=published, note=note)


LAYOUTS: dict[str, LayoutPreset] = {
    "dit-xl-256": _preset("1 + 4x[1,3,1,1] + 3", "the authors' training log", published=True),
    "dit-xl-512": _preset("2 + 4x[1,3,1,1] + 2", "the authors' training log", published=True),
    "dit-l-256": _preset("1 + 4x[1,2,1,1] + 3", "our choice: DiT-XL's, each module a sparse block shorter"),
    "dit-l-512": _preset("2 + 4x[1,2,1,1] + 2", "our choice: DiT-XL's, each module a sparse block shorter"),
    "dit-b-256": _preset("1 + 2x[1,2,1,1] + 1", "our choice: it fits the 14.34 GMAC that the paper reports"),
    "dit-b-512": _preset("1 + 2x[1,2,1,1] + 1", "our choice: as at 256 pixels, since one top block has to stay"),
    "dit-s-256": _preset("1 + 2x[1,2,1,1] + 1", "our choice: DiT-B's, of the same depth"),
    "dit-s-512": _preset("1 + 2x[1,2,1,1] + 1", "our choice: DiT-B's, of the same depth"),
    "latte-xl-256": _preset("1 + 2x[1,3,1,1] + 1", "our choice, over 14 pairs of a spatial and a temporal block"),
    "pixart-alpha-256": _preset("2 + 4x[1,3,1,1] + 2", "our choice: it fits the 91.62 GMAC that the paper reports"),
    "pixart-alpha-512": _preset("2 + 4x[1,3,1,1] + 2", "our choice: as at 256 pixels"),
    "emoji-256": _preset("1 + 2x[1,3,1,0] + 1", "our choice: text stays whole, so DiT-B's would save too little"),
}
"""Layouts by name of network and picture size. Where no layout was published, the choice follows the paper's ablations:
one or two pooling blocks (none makes training diverge), and two or more modules (one diverges)."""


def named_layout(name: str) -> SegmentLayout:
    """A preset by its name, or a layout as it is written. Raises ValueError that lists the presets."""
    if name in LAYOUTS:
        return LAYOUTS[name].layout
    if _match(name) is None:
        raise ValueError(
            f"layout is {name!r}; it must be one of {', '.join(LAYOUTS)}, or written as '1 + 4x[1,3,1,1] + 3'."
        )
    return SegmentLayout.parse(name)
