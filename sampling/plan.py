"""What will be computed for a request, and what it costs, before anything is. Pure arithmetic, no torch."""

from dataclasses import dataclass

from mezzotint.dit.density import Grid
from mezzotint.sampling.branches import Branch, step_branches, usable_cache
from mezzotint.sampling.catalog import ModelCard
from mezzotint.sampling.pass_cost import dense_flops, pass_flops
from mezzotint.sampling.request import GenerateRequest, RequestError

MAX_PIXEL_STEPS = 2_000_000_000
"""Price limit of one request in pixels x steps x pictures (1024 x 1024 x 100 steps x 16 pictures is 1.7e9)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlan:
    """One denoising step: noise time t (0 = data, 1 = noise), token grid, and the branches that run.

    branches: the conditional one, then the guidance's where it runs.
    cached: what the modules add comes from a cache; None where that is decided while drawing.
    flops: of one picture, all branches together; the most it can be where cached is None.
    """

    t: float
    grid: Grid
    branches: tuple[Branch, ...]
    cached: bool | None
    flops: int

    @property
    def guided(self) -> bool:
        return len(self.branches) > 1

    @property
    def sparse_grid(self) -> Grid | None:
        """The grid of the conditional branch's sparse tokens; None for a network without segments."""
        return self.branches[0].sparse_grid


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The steps of one picture, and the cost of the whole request in FLOPs: the most it can be where a cache decides
    while drawing. dense_flops: of the same request to a network of the same size without segments."""

    steps: tuple[StepPlan, ...]
    num_images: int
    flops: int
    dense_flops: int


def noise_times(num_steps: int, shift: float = 1.0) -> list[float]:
    """Noise time at the start of each step, from 1 towards 0; after the last step t is 0.

    Evenly spaced for shift 1; a larger shift spends more steps near the noise (SD3, arXiv 2403.03206, eq. 23).
    """
    even = [1 - i / num_steps for i in range(num_steps)]
    return [shift * t / (1 + (shift - 1) * t) for t in even]


def make_plan(request: GenerateRequest, card: ModelCard) -> Plan:
    """Plan a complete request (see `intake.accept`).

    Raises RequestError when the size does not fit the model's patch, the model has no segments for the density or the
    cache, or the price is above the limit.
    """
    width, height = request.width or card.sample_size, request.height or card.sample_size
    for field, side in (("width", width), ("height", height)):
        _check_side(field, side, card)
    _check_price(request, width, height)
    grid = card.grid(height, width)
    guided = (card.guidance_scale if request.guidance_scale is None else request.guidance_scale) != 1
    times = noise_times(request.num_inference_steps, card.time_shift)
    branches = step_branches(
        card.config, card.name, request.density, request.guidance_density,
        guided=guided, num_steps=len(times), grid=grid,
    )
    cached = usable_cache(card.config, card.name, request.cache).reused(len(times))
    steps = tuple(_step(card, grid, *step) for step in zip(times, branches, cached, strict=True))
    passes = len(steps) * (2 if guided else 1)
    return Plan(
        steps=steps, num_images=request.num_images, flops=sum(step.flops for step in steps) * request.num_images,
        dense_flops=passes * dense_flops(card.config, grid) * request.num_images,
    )


def _step(card: ModelCard, grid: Grid, t: float, branches: tuple[Branch, ...], cached: bool | None) -> StepPlan:
    flops = sum(
        pass_flops(card.config, grid, branch.sparse_grid, modules=not (cached or branch.skips_modules))
        for branch in branches
    )
    return StepPlan(t=t, grid=grid, branches=branches, cached=cached, flops=flops)


def _check_side(field: str, side: int, card: ModelCard) -> None:
    patch = card.patch_size
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
