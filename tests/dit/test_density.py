"""Schedules of token density: the published rates and grids, stairs, grids of any shape, and what is refused."""

from fractions import Fraction
from itertools import pairwise
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mezzotint.dit.density import DensitySchedule, cell_bounds, check_sparse_grid, grid_of_density

SIDES = st.integers(1, 70)


@pytest.mark.parametrize(
    ("rate", "side", "full"),
    [(0.86, 6, 16), (0.75, 8, 16), (0.61, 10, 16), (0.44, 12, 16),
     (0.96, 6, 32), (0.90, 10, 32), (0.86, 12, 32), (0.61, 20, 32)],
)
def test_the_published_grids_come_out(rate: float, side: int, full: int) -> None:
    assert grid_of_density(1 - rate, (full, full)) == (side, side)


def test_the_rate_is_flat_for_a_quarter_and_then_linear() -> None:
    schedule = DensitySchedule(r_min=0.61, r_max=0.86)
    for t in (0.0, 0.1, 0.2499):
        assert schedule.pruning_rate(t) == 0.61
    for t in (0.25, 0.5, 0.8, 1.0):
        assert schedule.pruning_rate(t) == pytest.approx(0.61 * (4 - 4 * t) / 3 + 0.86 * (4 * t - 1) / 3)


def test_four_stairs_are_a_quarter_each_from_least_to_most_pruned() -> None:
    stairs = DensitySchedule(r_min=0.61, r_max=0.86).stairs
    assert [(s.t_from, s.t_to) for s in stairs] == [(0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)]
    assert [s.pruning_rate for s in stairs] == pytest.approx([0.61, 0.61 + 0.25 / 3, 0.86 - 0.25 / 3, 0.86])
    assert stairs[-1].density == pytest.approx(0.14)


def test_a_grid_is_that_of_its_stair() -> None:
    schedule = DensitySchedule(r_min=0.61, r_max=0.86)
    expected = {0: 10, 0.2499: 10, 0.25: 9, 0.4999: 9, 0.5: 8, 0.7499: 8, 0.75: 6, 1: 6}
    assert {t: schedule.grid(t, (16, 16))[0] for t in expected} == expected
    assert all(schedule.grid(t, (16, 16))[0] == schedule.grid(t, (16, 16))[1] for t in expected)


@given(st.integers(2, 50), st.floats(0, 1))
def test_stairs_cover_all_times_once_and_grow_with_the_noise(num_stairs: int, t: float) -> None:
    schedule = DensitySchedule(r_min=0.2, r_max=0.9, num_stairs=num_stairs)
    stairs = schedule.stairs
    assert len(stairs) == num_stairs
    assert stairs[0].t_from == 0
    assert stairs[-1].t_to == 1
    assert all(a.t_to == b.t_from and a.pruning_rate < b.pruning_rate for a, b in pairwise(stairs))
    on = schedule.stair(t)
    assert on.t_from <= t < on.t_to or t == on.t_to == 1


@given(st.floats(0, 1))
def test_a_fine_staircase_follows_the_rate(t: float) -> None:
    schedule = DensitySchedule(r_min=0.61, r_max=0.86, num_stairs=2000)
    assert schedule.stair(t).pruning_rate == pytest.approx(schedule.pruning_rate(t), abs=2e-4)


def test_a_schedule_of_one_rate_keeps_one_grid() -> None:
    schedule = DensitySchedule(r_min=0.75, r_max=0.75)
    assert set(schedule.step_grids(25, (16, 16))) == {(8, 8)}


def test_steps_run_from_the_noise_to_the_data() -> None:
    grids = DensitySchedule(r_min=0.61, r_max=0.86).step_grids(8, (16, 16))
    assert [rows for rows, _ in grids] == [6, 6, 6, 8, 8, 9, 9, 10]


def test_the_mean_counts_the_grids_that_are_taken() -> None:
    schedule = DensitySchedule(r_min=0.61, r_max=0.86)
    times = [(i + 0.5) / 1000 for i in range(1000)]
    assert schedule.mean_density(times, (16, 16)) == pytest.approx((36 + 64 + 81 + 100) / 4 / 256)


@given(SIDES, SIDES, st.floats(0.005, 1))
def test_a_grid_fits_and_is_about_as_dense_and_as_wide_as_asked(rows: int, columns: int, density: float) -> None:
    grid = grid_of_density(density, (rows, columns))
    check_sparse_grid(grid, (rows, columns))
    wanted = density * rows * columns
    # One side more or less, on both axes at once, is as near as whole numbers come.
    assert prod(side - 1 for side in grid) <= wanted <= prod(side + 1 for side in grid)
    scales = [Fraction(2 * side - 1, 2 * all_) for side, all_ in zip(grid, (rows, columns), strict=True)]
    ends = [Fraction(2 * side + 1, 2 * all_) for side, all_ in zip(grid, (rows, columns), strict=True)]
    lower = max((scale for scale, side in zip(scales, grid, strict=True) if side > 1), default=Fraction(0))
    assert lower < min(ends), "no one scale rounds to both sides"


def test_the_nearest_count_is_taken() -> None:
    # Of 4 x 4 = 16 and 5 x 5 = 25 tokens, 19 is nearer to the first, 21 to the second (by ratio).
    assert grid_of_density(19 / 256, (16, 16)) == (4, 4)
    assert grid_of_density(21 / 256, (16, 16)) == (5, 5)
    assert grid_of_density(0.14, (1, 64)) == (1, 9)


def test_full_density_is_the_full_grid() -> None:
    for full in ((16, 16), (1, 7), (9, 31)):
        assert grid_of_density(1.0, full) == full


@given(SIDES, SIDES)
def test_cells_cover_a_side_without_a_gap(side: int, cells: int) -> None:
    bounds = cell_bounds(max(side, cells), min(side, cells))
    assert bounds[0][0] == 0
    assert bounds[-1][1] == max(side, cells)
    assert all(start < end for start, end in bounds)
    assert all(a[1] in (b[0], b[0] + 1) for a, b in pairwise(bounds))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"r_min": -0.1}, "r_min is -0.1; .*density 1.1 "),
        ({"r_max": 1.0}, "r_max is 1.0; .*density 0 "),
        ({"r_max": float("nan")}, "r_max is nan"),
        ({"r_min": 0.9}, "r_min is 0.9; it must be at most r_max 0.86"),
        ({"num_stairs": 1}, "num_stairs is 1"),
    ],
)
def test_an_impossible_schedule_is_refused_by_name(settings: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        DensitySchedule(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("density", [0.0, -0.2, 1.01, float("nan")])
def test_a_density_out_of_range_is_refused(density: float) -> None:
    with pytest.raises(ValueError, match=r"density is .*; it must be over 0 and at most 1\."):
        grid_of_density(density, (16, 16))


@pytest.mark.parametrize("t", [-0.01, 1.01, float("nan")])
def test_a_time_out_of_range_is_refused(t: float) -> None:
    schedule = DensitySchedule()
    for ask in (schedule.pruning_rate, schedule.stair, lambda t: schedule.grid(t, (16, 16))):
        with pytest.raises(ValueError, match=r"t is .*; it must be between 0"):
            ask(t)


def test_a_grid_larger_than_the_full_one_is_refused() -> None:
    check_sparse_grid((16, 8), (16, 8))
    for grid in ((17, 4), (4, 9)):
        with pytest.raises(ValueError, match=r"grid is .*; it must be at most \(16, 8\)"):
            check_sparse_grid(grid, (16, 8))
    for bad in ((0, 4), (4,), (2.5, 4)):
        with pytest.raises(ValueError, match="two positive whole numbers"):
            check_sparse_grid(bad, (16, 8))  # type: ignore[arg-type]


def test_a_mean_over_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match="times is empty"):
        DensitySchedule().mean_density([], (16, 16))
