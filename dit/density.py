"""Token density over noise time: how many tokens the sparse segments of a network keep at each step.

The schedule of FlexDiT / SparseDiT (arXiv 2412.06028): fewest tokens at pure noise, most in the last quarter of
denoising. Pure arithmetic, no torch. t is noise time as a fraction of T: 0 = data, 1 = noise; for flow models and
shifted schedules it is the fraction of denoising steps that remain.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import floor, log, prod

Grid = tuple[int, int]
"""Token rows and columns."""

FLAT_UNTIL = 0.25
"""Below this t the pruning rate is r_min."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stair:
    """An interval t_from <= t < t_to (the last one holds t = 1, too) with one pruning rate.

    A batch of training needs one token count, so its t are drawn inside one stair; a stair is drawn with a
    probability of its length.
    """

    t_from: float
    t_to: float
    pruning_rate: float

    @property
    def density(self) -> float:
        return 1 - self.pruning_rate


@dataclass(frozen=True, kw_only=True, slots=True)
class DensitySchedule:
    """A staircase along r(t), the rate of pruned tokens: r_min for t < 1/4, then linear to r_max at t = 1.

    r_min, r_max: pruning rates 1 - kept / all, each in [0, 1), r_min <= r_max. Published pairs: .44 to .61,
        .61 to .86 and .90 to .96.
    num_stairs: 2 or more. One covers the flat quarter, the others share the linear part evenly, each at the rate of
        its noisier end; 4 are a quarter of T each, from r_min to r_max, as the paper's figure draws them. Many come
        close to r(t) itself.
    Raises ValueError naming the argument, its value and its range.
    """

    r_min: float = 0.61
    r_max: float = 0.86
    num_stairs: int = 4

    def __post_init__(self) -> None:
        for name in ("r_min", "r_max"):
            rate = getattr(self, name)
            if not 0 <= rate < 1:
                raise ValueError(
                    f"{name} is {rate}; it must be at least 0 and under 1, so that the density {1 - rate:g} is over 0 "
                    "and at most 1."
                )
        if self.r_min > self.r_max:
            raise ValueError(f"r_min is {self.r_min}; it must be at most r_max {self.r_max}.")
        if self.num_stairs < 2:
            raise ValueError(f"num_stairs is {self.num_stairs}; it must be at least 2.")

    def pruning_rate(self, t: float) -> float:
        """r(t) without stairs. Raises ValueError for t outside [0, 1]."""
        _check_time(t)
        share = max(0.0, (t - FLAT_UNTIL) / (1 - FLAT_UNTIL))
        return self.r_min * (1 - share) + self.r_max * share

    @property
    def stairs(self) -> tuple[Stair, ...]:
        """All stairs, from t = 0 to 1."""
        edges = (0.0, *_upper_edges(self.num_stairs))
        return tuple(
            Stair(t_from=edges[i], t_to=edges[i + 1], pruning_rate=self._rate_of_stair(i))
            for i in range(self.num_stairs)
        )

    def stair(self, t: float) -> Stair:
        """The stair that t lies on. Raises ValueError for t outside [0, 1]."""
        _check_time(t)
        return self.stairs[self._index(t)]

    def grid(self, t: float, full: Grid) -> Grid:
        """Grid of the sparse tokens at t, for a full grid of (rows, columns). Raises ValueError as `stair` does."""
        _check_time(t)
        return grid_of_density(1 - self._rate_of_stair(self._index(t)), full)

    def step_grids(self, num_steps: int, full: Grid) -> tuple[Grid, ...]:
        """The sparse grid of each of num_steps denoising steps, t being the fraction of the steps that remain."""
        return tuple(self.grid((num_steps - step) / num_steps, full) for step in range(num_steps))

    def mean_density(self, times: Sequence[float], full: Grid) -> float:
        """Kept tokens over all tokens, averaged over noise times, with the grids that are really taken."""
        if not times:
            raise ValueError("times is empty; at least one noise time is needed for a mean.")
        return sum(prod(self.grid(t, full)) for t in times) / len(times) / prod(full)

    def _index(self, t: float) -> int:
        return min(bisect_right(_upper_edges(self.num_stairs), t), self.num_stairs - 1)

    def _rate_of_stair(self, index: int) -> float:
        share = index / (self.num_stairs - 1)
        return self.r_min * (1 - share) + self.r_max * share


@lru_cache(maxsize=64)
def _upper_edges(num_stairs: int) -> tuple[float, ...]:
    return tuple(FLAT_UNTIL + (1 - FLAT_UNTIL) * i / (num_stairs - 1) for i in range(num_stairs))


def _check_time(t: float) -> None:
    if not 0 <= t <= 1:
        raise ValueError(f"t is {t}; it must be between 0 (data) and 1 (noise).")


@lru_cache(maxsize=1024)
def grid_of_density(density: float, full: Grid) -> Grid:
    """The grid whose token count is nearest to density times that of the full grid, in its aspect.

    density: over 0 and at most 1. Both sides are scaled alike and rounded; of all grids made so, the one nearest in
    the logarithm of the count is taken. The published grids of 16 x 16 and 32 x 32 tokens come out (token_density
    tables of arXiv 2412.06028). Raises ValueError naming what is out of range.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density is {density}; it must be over 0 and at most 1.")
    _check_sides("full", full)
    wanted = density * prod(full)
    return min(_scaled_grids(full), key=lambda grid: abs(log(prod(grid) / wanted)))


@lru_cache(maxsize=64)
def _scaled_grids(full: Grid) -> tuple[Grid, ...]:
    """All grids that round(scale * full) takes for a scale up to 1: a side grows by one where it crosses a half."""
    crossings = {Fraction(2 * k - 1, 2 * side) for side in full for k in range(1, side + 1)}
    rounded = {tuple(max(1, floor(side * scale + Fraction(1, 2))) for side in full) for scale in crossings}
    return tuple(sorted((rows, columns) for rows, columns in rounded))


def check_sparse_grid(grid: Grid, full: Grid) -> None:
    """Raise ValueError unless grid is a pair of positive sides, none longer than the full grid's."""
    _check_sides("grid", grid)
    if grid[0] > full[0] or grid[1] > full[1]:
        raise ValueError(f"grid is {tuple(grid)}; it must be at most {tuple(full)}, the full grid of these tokens.")


def _check_sides(name: str, grid: Grid) -> None:
    if len(grid) != 2 or not all(isinstance(side, int) and side > 0 for side in grid):
        raise ValueError(f"{name} is {grid}; it must be two positive whole numbers, rows and columns.")


def cell_bounds(side: int, cells: int) -> list[tuple[int, int]]:
    """First token and end of each of `cells` cells along a side of `side` tokens; neighbours may share a token.

    As adaptive average pooling cuts: from floor(i * side / cells) to ceil((i + 1) * side / cells).
    """
    return [(i * side // cells, -(-(i + 1) * side // cells)) for i in range(cells)]
