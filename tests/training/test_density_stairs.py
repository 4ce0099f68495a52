"""Which grid a step takes and which noise times go with it: held against a count of the objective's own times."""

from collections import Counter
from math import prod

import pytest
import torch

from mezzotint.dit.density import DensitySchedule
from mezzotint.sampling.density_presets import density_schedule
from mezzotint.training.config import ConfigError, DensityConfig, ObjectiveConfig, from_mapping
from mezzotint.training.density_stairs import StairDraw, draw_stair
from mezzotint.training.objectives import draw_t
from mezzotint.training.task import StepKey

FULL = (16, 16)
OBJECTIVE = ObjectiveConfig(t_mean=0.3, t_std=1.4)
SHIFT = 2.5
STEPS = 3000


def remaining(noise_time: float) -> float:
    """The fraction of denoising steps that remain at a noise time, for a shifted schedule."""
    return noise_time / (SHIFT - (SHIFT - 1) * noise_time)


def times(draw: StairDraw, step: int, count: int = 8) -> list[float]:
    generator = torch.Generator().manual_seed(step)
    return draw_t(count, OBJECTIVE, generator, (draw.quantile_from, draw.quantile_to)).tolist()


def test_every_time_of_a_step_lies_where_the_schedule_has_its_grid() -> None:
    config = DensityConfig(densities=("fast",), time_shift=SHIFT)
    schedule = density_schedule("fast")
    for step in range(300):
        draw = draw_stair(config, OBJECTIVE, FULL, StepKey(seed=3, step=step))
        for t in times(draw, step):
            assert schedule.grid(min(1.0, remaining(t)), FULL) == draw.grid


def test_grids_come_as_often_as_the_noise_times_ask_for_them() -> None:
    config = DensityConfig(densities=("0.61-0.86",), time_shift=SHIFT)
    drawn = Counter(draw_stair(config, OBJECTIVE, FULL, StepKey(seed=0, step=i)).grid for i in range(STEPS))
    schedule = DensitySchedule(r_min=0.61, r_max=0.86)
    free = draw_t(100_000, OBJECTIVE, torch.Generator().manual_seed(1))
    wanted = Counter(schedule.grid(remaining(t), FULL) for t in free.tolist())
    assert len(wanted) == 4
    assert set(drawn) == set(wanted)
    for grid, count in wanted.items():
        share = count / 100_000
        assert drawn[grid] / STEPS == pytest.approx(share, abs=4 * (share * (1 - share) / STEPS) ** 0.5)


@pytest.mark.parametrize("processes", [1, 3, 4])
def test_the_noise_times_over_all_steps_are_those_of_a_dense_run(processes: int) -> None:
    config = DensityConfig(densities=("balanced", "fast"), time_shift=SHIFT)
    drawn = []
    for step in range(STEPS):
        for rank in range(processes):
            key = StepKey(seed=9, step=step, rank=rank, num_ranks=processes)
            drawn += times(draw_stair(config, OBJECTIVE, FULL, key), step * processes + rank, 1)
    shares = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    wanted = torch.sigmoid(torch.special.ndtri(shares) * OBJECTIVE.t_std + OBJECTIVE.t_mean)
    reached = [(torch.tensor(drawn) < t).float().mean().item() for t in wanted]
    assert reached == pytest.approx(shares.tolist(), abs=4 * 0.5 / len(drawn) ** 0.5)


def test_processes_take_stairs_of_their_own() -> None:
    """Eight processes over a distribution: a stair of share s has floor(8 s) or ceil(8 s) of them, at every step."""
    config = DensityConfig(densities=("fast",), time_shift=SHIFT)
    free = draw_t(100_000, OBJECTIVE, torch.Generator().manual_seed(1))
    schedule = density_schedule("fast")
    shares = {g: n / 100_000 for g, n in Counter(schedule.grid(remaining(t), FULL) for t in free.tolist()).items()}
    for step in range(50):
        keys = [StepKey(seed=1, step=step, rank=rank, num_ranks=8) for rank in range(8)]
        counts = Counter(draw_stair(config, OBJECTIVE, FULL, key).grid for key in keys)
        assert all(abs(counts[grid] - 8 * share) < 1 for grid, share in shares.items())


def test_full_and_fast_are_drawn_alike_often() -> None:
    config = DensityConfig(densities=("full", "fast"))
    grids = [draw_stair(config, OBJECTIVE, FULL, StepKey(seed=0, step=i)).grid for i in range(STEPS)]
    full = sum(grid is not None and prod(grid) == prod(FULL) for grid in grids)
    assert full / STEPS == pytest.approx(0.5, abs=4 * 0.5 / STEPS**0.5)


def test_a_step_draws_the_same_again_and_without_densities_all_times() -> None:
    config = DensityConfig(densities=("balanced", "fast"), time_shift=SHIFT)
    key = StepKey(seed=4, step=17)
    assert draw_stair(config, OBJECTIVE, FULL, key) == draw_stair(config, OBJECTIVE, FULL, key)
    assert draw_stair(DensityConfig(), OBJECTIVE, FULL, key) == StairDraw(grid=None)


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"density": {"densities": ["0.9-0.1"]}, "model": {"segments": "1 + 2x[1,3,1,0] + 1"}},
     r"density\.densities is .*0\.9-0\.1.* must be a list of full, balanced, fast"),
    ({"density": {"densities": ["fast"]}}, r"model\.segments is None; it must be a layout"),
    ({"density": {"time_shift": 0}}, r"density\.time_shift is 0\.0; it must be more than 0"),
    ({"distill": {"hint_weight": -1}}, r"distill\.hint_weight is -1\.0; it must be 0 or more"),
    ({"distill": {"hint_weight": 1}, "masking": {"ratio": 0.5}}, r"distill\.hint_weight is 1\.0; it must be 0 where"),
    ({"distill": {"weight": 1.5}}, r"distill\.weight is 1\.5; it must be in \[0, 1\]"),
])
def test_settings_out_of_range_are_refused(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        from_mapping(settings)
