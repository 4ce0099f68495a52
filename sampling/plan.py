"""What will be computed for a request, and what it costs, before anything is. Pure arithmetic, no torch."""

from dataclasses import dataclass

from mezzotint.dit.config import DiTConfig
from mezzotint.dit.density import Grid
from mezzotint.dit.flops import forward_flops
from mezzotint.sampling.catalog import ModelCard
from mezzotint.sampling.density_presets import FULL, density_schedule
from mezzotint.sampling.request import GenerateRequest, RequestError

MAX_PIXEL_STEPS = 2_000_000_000
"""Price limit of one request in pixels x steps x pictures (1024 x 1024 x 100 steps x 16 pictures is 1.7e9)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlan:
    """One denoising step: noise time t (0 = data, 1 = noise), token grid, and whether guidance runs.

    sparse_grid: the grid of the tokens in the sparse segments; None for a network without segments.
    flops: of one picture, the guidance's pass included.
    """

    t: float
    grid: Grid
    guided: bool
    sparse_grid: Grid | None
    flops: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The steps of one picture, and the cost of the whole request in FLOPs."""

    steps: tuple[StepPlan, ...]
    num_images: int
    flops: int


def noise_times(num_steps: int, shift: float = 1.0) -> list[float]:
    """Noise time at the start of each step, from 1 towards 0; after the last step t is 0.

    Evenly spaced for shift 1; a larger shift spends more steps near the noise (SD3, arXiv 2403.03206, eq. 23).
    """
    even = [1 - i / num_steps for i in range(num_steps)]
    return [shift * t / (1 + (shift - 1) * t) for t in even]


def make_plan(request: GenerateRequest, card: ModelCard) -> Plan:
    """Plan a complete request (see `intake.accept`).

    Raises RequestError when the size does not fit the model's patch, the model has no segments for the density, or
    the price is above the limit.
    """
    width, height = request.width or card.config.sample_size, request.height or card.config.sample_size
    for field, side in (("width", width), ("height", height)):
        _check_side(field, side, card)
    _check_price(request, width, height)
    grid = card.config.grid(height, width)
    guided = (card.guidance_scale if request.guidance_scale is None else request.guidance_scale) != 1
    times = noise_times(request.num_inference_steps, card.time_shift)
    sparse = sparse_grids(card.config, card.name, request.density, len(times), grid)
    passes = 2 if guided else 1
    flops = {cells: passes * forward_flops(card.config, grid, sparse_grid=cells) for cells in set(sparse)}
    steps = tuple(
        StepPlan(t=t, grid=grid, guided=guided, sparse_grid=cells, flops=flops[cells])
        for t, cells in zip(times, sparse, strict=True)
    )
    return Plan(
        steps=steps, num_images=request.num_images, flops=sum(step.flops for step in steps) * request.num_images
    )


def sparse_grids(
    config: DiTConfig, model: str, density: str | None, num_steps: int, grid: Grid
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
        raise RequestError("density", f"density is {density}; {model} has no segments of token density, so give "
                                      "full, or take a model that has them (`mezzotint convert --density` cuts one).")
    return (None,) * num_steps


def _check_side(field: str, side: int, card: ModelCard) -> None:
    patch = card.config.patch_size
    if side % patch:
        below, above = side // patch * patch, (side // patch + 1) * patch
        nearest = f"{below} or {above}" if below else f"{above}"
        raise RequestError(field, f"{field} is {side}; for {card.name} it must be a multiple of {patch}, "
                                  f"such as {nearest}.")


def _check_price(request: GenerateRequest, width: int, height: int) -> None:
    price = width * height * request.num_inference_steps * request.num_images
    if price > MAX_PIXEL_STEPS:
        raise RequestError(
            "num_inference_steps",
            f"width x height x num_inference_steps x num_images is {price:,}; at most {MAX_PIXEL_STEPS:,} "
            "is allowed, so lower one of them.",
        )
