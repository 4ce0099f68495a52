"""Step caches by themselves: which steps and rows they run, and what they put in the place of the modules."""

import gc
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mezzotint.sampling.cache import FirstBlockCache, ModuleCache, ModuleRun, TaylorCache, make_cache
from mezzotint.sampling.cache_presets import CacheSetting, cache_setting

STEPS = 12


def tokens(rows: int, seed: int) -> Tensor:
    return torch.randn(rows, 5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Modules:
    """Modules that add something else at each step; keeps which rows they ran."""

    def __init__(self, entering: Tensor, residual: Tensor) -> None:
        self.entering, self.residual = entering, residual
        self.ran: list[int] = []

    def __call__(self, rows: Sequence[int] | None) -> Tensor:
        chosen = list(range(len(self.entering))) if rows is None else list(rows)
        self.ran += chosen
        return (self.entering + self.residual)[chosen]


def at_step(
    cache: ModuleCache, step: int, entering: Tensor, residual: Tensor, below: Tensor, rows: Sequence[int] | None = None
) -> tuple[Tensor, list[int]]:
    """What leaves the modules, less what enters, and the places of the rows that ran."""
    modules = Modules(entering, residual)
    leaving = cache.at(step, range(len(entering)) if rows is None else rows)(entering - below, entering, modules)
    return leaving - entering, sorted(modules.ran)


def test_a_name_alone_takes_the_usual_number() -> None:
    assert cache_setting("off") == CacheSetting(kind="off")
    assert cache_setting("first-block") == CacheSetting(kind="first-block", threshold=0.1)
    assert cache_setting("first-block:.05") == CacheSetting(kind="first-block", threshold=0.05)
    assert cache_setting("taylor") == CacheSetting(kind="taylor", interval=3)
    assert cache_setting("taylor:4") == CacheSetting(kind="taylor", interval=4)


@pytest.mark.parametrize("cache", [None, 0.1, "taylor 3", "Taylor", "first-block:1.2", "taylor:0", "taylor:0.1"])
def test_what_is_no_cache_is_refused(cache: object) -> None:
    with pytest.raises(ValueError, match=r"^cache is .*; it must be off, first-block or taylor"):
        cache_setting(cache)  # type: ignore[arg-type]


def test_the_steps_that_are_left_out() -> None:
    assert cache_setting("taylor:3").reused(9) == (False, False, True, True, False, True, True, False, True)
    assert cache_setting("taylor:1").reused(4) == cache_setting("off").reused(4) == (False,) * 4
    assert cache_setting("first-block").reused(4) == (False, None, None, None)
    assert cache_setting("taylor").reused(1) == (False,)


@given(st.integers(1, 10), st.integers(1, 40))
def test_every_interval_th_step_runs_the_modules(interval: int, num_steps: int) -> None:
    reused = cache_setting(f"taylor:{interval}").reused(num_steps)
    fresh = [step for step, left_out in enumerate(reused) if not left_out]
    assert fresh == [step for step in range(num_steps) if step == 0 or (step - 1) % interval == 0]


def test_off_is_no_cache() -> None:
    assert make_cache(cache_setting("off"), STEPS) is None


@pytest.mark.parametrize("interval", [2, 3, 5])
def test_taylor_draws_a_straight_line_through_the_last_two_runs(interval: int) -> None:
    cache = make_cache(CacheSetting(kind="taylor", interval=interval), STEPS)
    assert isinstance(cache, TaylorCache)
    known: list[tuple[int, Tensor]] = []
    for step in range(STEPS):
        residual, fresh = tokens(2, step), step == 0 or (step - 1) % interval == 0
        added, ran = at_step(cache, step, tokens(2, 100 + step), residual, tokens(2, 200 + step))
        assert ran == ([0, 1] if fresh else [])
        if fresh:
            known.append((step, residual))
            expected = residual
        else:
            (s0, r0), (s1, r1) = known[-2:]
            expected = r1 + (r1 - r0) / (s1 - s0) * (step - s1)
        torch.testing.assert_close(added, expected)


def test_taylor_is_exact_where_residuals_change_evenly() -> None:
    cache = make_cache(cache_setting("taylor:4"), STEPS)
    assert cache is not None
    start, slope = tokens(1, 0), tokens(1, 1)
    for step in range(STEPS):
        added, _ = at_step(cache, step, tokens(1, 100 + step), start + slope * step, tokens(1, 7))
        torch.testing.assert_close(added, start + slope * step)


def changes_of(series: Sequence[Tensor], threshold: float) -> list[bool]:
    """For one row and each step whether its modules run, written out."""
    then, fresh = series[0], [True]
    for now in series[1:]:
        change = sum(abs(float(a - b)) for a, b in zip(now.flatten(), then.flatten(), strict=True))
        size = sum(abs(float(b)) for b in then.flatten())
        fresh.append(change / size >= threshold)
        then = now if fresh[-1] else then
    return fresh


@pytest.mark.parametrize("threshold", [0.02, 0.1, 0.3, 1.0])
def test_each_row_runs_its_modules_when_what_is_below_them_has_changed(threshold: float) -> None:
    cache = FirstBlockCache(threshold)
    # Of three rows one stands still, one drifts, and one jumps.
    belows = [
        torch.stack([tokens(1, 0)[0], tokens(1, 1)[0] * (1 + 0.04 * step), tokens(1, 50 + step // 4)[0]])
        for step in range(STEPS)
    ]
    expected = [changes_of([below[row] for below in belows], threshold) for row in range(3)]
    if threshold < 1:
        still, *moving = (sum(row) for row in expected)
        assert still == 1 < min(moving)
    last: dict[int, Tensor] = {}
    for step, below in enumerate(belows):
        residual = tokens(3, 300 + step)
        added, ran = at_step(cache, step, tokens(3, 400 + step), residual, below)
        assert ran == [row for row in range(3) if expected[row][step]]
        last |= {row: residual[row] for row in ran}
        torch.testing.assert_close(added, torch.stack([last[row] for row in range(3)]))


def test_a_threshold_of_0_always_runs_the_modules() -> None:
    cache = FirstBlockCache(0.0)
    for step in range(3):
        assert at_step(cache, step, tokens(2, 0), tokens(2, 1), tokens(2, 2))[1] == [0, 1]


def test_where_nothing_was_below_the_modules_run() -> None:
    cache = FirstBlockCache(0.5)
    for step in range(3):
        assert at_step(cache, step, tokens(1, 0), tokens(1, 1), torch.zeros(1, 5, 3))[1] == [0]


def test_rows_are_known_by_their_number_and_not_by_their_place() -> None:
    cache = FirstBlockCache(0.5)
    at_step(cache, 0, tokens(2, 0), tokens(2, 1), tokens(2, 2), rows=[4, 7])
    swapped, ran = at_step(cache, 1, tokens(2, 3), tokens(2, 4), tokens(2, 2).flip(0), rows=[7, 4])
    assert ran == []
    torch.testing.assert_close(swapped, tokens(2, 1).flip(0))
    assert at_step(cache, 1, tokens(1, 3), tokens(1, 4), tokens(2, 2)[:1], rows=[5])[1] == [0]


@pytest.mark.parametrize("written", ["first-block:0", "taylor:2"])
def test_a_cache_keeps_two_runs_a_row_however_many_steps_there_are(written: str) -> None:
    cache = make_cache(cache_setting(written), 60)
    assert cache is not None
    gc.collect()
    before = sum(type(one) is ModuleRun for one in gc.get_objects())
    for step in range(60):
        at_step(cache, step, tokens(2, step), tokens(2, step), tokens(2, step))
    assert sum(type(one) is ModuleRun for one in gc.get_objects()) - before == 4
