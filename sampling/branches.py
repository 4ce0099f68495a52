"""What each branch of guidance computes at each step: its sparse grid, or nothing of the modules; and whether a cache
can stand in for them. No torch here.

Density guidance (after Sparse Guidance, arXiv 2601.01608, and SPRINT's path-drop guidance, arXiv 2510.21986): the
branch without the prompt or the class runs on a sparser grid than the conditional one, or leaves the modules out.
"""

from dataclasses import dataclass

from mezzotint.dit.config import DiTConfig
from mezzotint.dit.density import Grid
from mezzotint.dit.latent_config import ClassDiTConfig
from mezzotint.dit.segment_layout import module_span
from mezzotint.sampling.cache_presets import FIRST_BLOCK, OFF, CacheSetting, cache_setting
from mezzotint.sampling.density_presets import FULL, SAME, SKIP, check_guidance_density, density_schedule
from mezzotint.sampling.request import RequestError


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """sparse_grid: rows and columns of the sparse tokens; None for a network without segments.
    skips_modules: the sparse-dense modules are left out, and the grid says nothing."""

    sparse_grid: Grid | None = None
    skips_modules: bool = False


def step_branches(
    config: DiTConfig | ClassDiTConfig, model: str, density: str | None, guidance_density: str | None, *,
    guided: bool, num_steps: int, grid: Grid,
) -> tuple[tuple[Branch, ...], ...]:
    """The branches of each step: the conditional one and, where guidance runs, its own.

    density, guidance_density: see `density_presets`; None is full, and the same as the conditional branch.
    model: what an error calls the model. grid: the full grid of (rows, columns).
    Raises RequestError for a density that there is not, or that the network has no segments for.
    """
    conditional = [Branch(sparse_grid=cells) for cells in sparse_grids(config, model, density, num_steps, grid)]
    guidance = _guidance_branches(config, model, guidance_density or SAME, conditional, grid)
    return tuple(zip(conditional, guidance, strict=True)) if guided else tuple((branch,) for branch in conditional)


def _guidance_branches(
    config: DiTConfig | ClassDiTConfig, model: str, density: str, conditional: list[Branch], grid: Grid
) -> list[Branch]:
    try:
        check_guidance_density(density)
    except ValueError as error:
        raise RequestError("guidance_density", str(error)) from None
    if density == SAME:
        return conditional
    if config.segments is None:
        raise without_segments("guidance_density", density, model, SAME)
    if density == SKIP:
        return [Branch(skips_modules=True)] * len(conditional)
    return [Branch(sparse_grid=cells) for cells in density_schedule(density).step_grids(len(conditional), grid)]


def sparse_grids(
    config: DiTConfig | ClassDiTConfig, model: str, density: str | None, num_steps: int, grid: Grid
) -> tuple[Grid | None, ...]:
    """The sparse grid of each step, for a full grid of (rows, columns); None at every step without segments.

    density: see `density_presets`; None is full. model: what an error calls the model.
    Raises RequestError for a density that there is not, and for any but full where there are no segments.
    """
    density = FULL if density is None else density
    try:
        schedule = density_schedule(density)
    except ValueError as error:
        raise RequestError("density", str(error)) from None
    if config.segments is not None:
        return schedule.step_grids(num_steps, grid)
    if density != FULL:
        raise without_segments("density", density, model, FULL)
    return (None,) * num_steps


def usable_cache(config: DiTConfig | ClassDiTConfig, model: str, cache: str | None) -> CacheSetting:
    """A cache as it is written (see `cache_presets`; None is off), once the network can be used with it.

    Raises RequestError for a cache that there is not, and where the network has not the blocks that it needs.
    """
    try:
        setting = cache_setting(OFF if cache is None else cache)
    except ValueError as error:
        raise RequestError("cache", str(error)) from None
    if setting.kind == OFF:
        return setting
    if config.segments is None:
        raise without_segments("cache", str(cache), model, OFF)
    if setting.kind == FIRST_BLOCK and not module_span(config.segments).start:
        raise RequestError("cache", f"cache is {cache}; {model} has no block below its modules to decide by, so give "
                                    "off or taylor.")
    return setting


def without_segments(field: str, value: str, model: str, instead: str) -> RequestError:
    """The refusal of a setting that only a network with segments has."""
    return RequestError(field, f"{field} is {value}; {model} has no segments of token density, so give {instead}, or "
                               "take a model that has them (`mezzotint convert --density` cuts one).")
