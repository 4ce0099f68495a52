"""Which sparse grid a step of training takes, and which noise times go with it.

A batch has one token count, so its noise times lie on one stair of the density schedule (arXiv 2412.06028, section
3.4). A stair is drawn with the probability that the objective's own noise times give it, and times inside it by the
same distribution, so that over many steps the noise times are those of a dense run. Several processes take stairs
that lie evenly apart, each its own: with four processes and a schedule of four even stairs, one each.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import inf, log

import torch

from mezzotint.dit.density import DensitySchedule, Grid, Stair
from mezzotint.sampling.density_presets import density_schedule
from mezzotint.training.config import DensityConfig, ObjectiveConfig
from mezzotint.training.task import StepKey

_STREAM = 1

_NORMAL = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))


@dataclass(frozen=True, kw_only=True, slots=True)
class StairDraw:
    """The sparse grid of a step in one process, and the share of the noise times that goes with it: from and to are
    quantiles of the objective's distribution (0 is the least noise)."""

    grid: Grid | None
    quantile_from: float = 0.0
    quantile_to: float = 1.0


@dataclass(frozen=True, slots=True)
class EvenTimes:
    """Noise times that are all alike, as DDPM draws its steps."""


NoiseTimes = ObjectiveConfig | EvenTimes
"""How an objective draws its noise times."""


def draw_stair(config: DensityConfig, objective: NoiseTimes, full: Grid, key: StepKey) -> StairDraw:
    """Draw a step's stair. Without densities it is all of the noise times on the full grid (grid None)."""
    if not config.densities:
        return StairDraw(grid=None)
    generator = key.shared(_STREAM)
    chosen = int(torch.randint(len(config.densities), (1,), generator=generator))
    schedule = density_schedule(config.densities[chosen])
    start = float(torch.rand(1, generator=generator, dtype=torch.float64))
    quantile = (start + key.rank / key.num_ranks) % 1.0
    for stair, bounds in zip(schedule.stairs, stair_quantiles(schedule, config.time_shift, objective), strict=True):
        if quantile < bounds[1] or bounds[1] == 1:
            return StairDraw(grid=_grid(schedule, stair, full), quantile_from=bounds[0], quantile_to=bounds[1])
    raise AssertionError("the last stair ends at 1")


def _grid(schedule: DensitySchedule, stair: Stair, full: Grid) -> Grid:
    return schedule.grid((stair.t_from + stair.t_to) / 2, full)


def stair_quantiles(
    schedule: DensitySchedule, time_shift: float, objective: NoiseTimes
) -> list[tuple[float, float]]:
    """Quantiles of the objective's noise times at both ends of each stair.

    A stair's t is the fraction of denoising steps that remain; noise time is shift * t / (1 + (shift - 1) * t).
    """
    edges = [0.0, *(_quantile(stair.t_to, time_shift, objective) for stair in schedule.stairs)]
    return list(pairwise(edges))


def _quantile(remaining: float, time_shift: float, objective: NoiseTimes) -> float:
    noise_time = time_shift * remaining / (1 + (time_shift - 1) * remaining)
    if isinstance(objective, EvenTimes):
        return noise_time
    logit = inf if noise_time >= 1 else log(noise_time / (1 - noise_time))
    return float(_NORMAL.cdf(torch.tensor((logit - objective.t_mean) / objective.t_std, dtype=torch.float64)))
