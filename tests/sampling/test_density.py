"""Token density in a request: the plan's sparse grids and price, and the grids that reach the network."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mezzotint.dit.flops import forward_flops
from mezzotint.dit.model import DiT, _cached_rope
from mezzotint.sampling.catalog import ModelCard
from mezzotint.sampling.density_presets import PRUNING_RATES, density_schedule
from mezzotint.sampling.pipeline import Pipeline
from mezzotint.sampling.plan import make_plan
from mezzotint.sampling.request import GenerateRequest, RequestError

FAST_GRIDS = [(6, 6), (6, 6), (8, 8), (9, 9)]
"""Of 16 x 16 tokens in four steps, which start where 4, 3, 2 and 1 quarters remain. A stair holds its lower end, so the
pruning rates are .86, .86, .777 and .693: 36, 36, 57 and 79 tokens are nearest to 36, 36, 64 and 81."""


def ask(**fields: object) -> GenerateRequest:
    return GenerateRequest.model_validate({"prompt": "x", "num_inference_steps": 4, **fields})


@pytest.fixture
def cut(card: ModelCard) -> ModelCard:
    """The small model in segments, on 16 x 16 tokens."""
    config = replace(card.config, segments="1 + 2x[1,2,1,0] + 3", sample_size=256)
    return replace(card, config=config)


def sparse(card: ModelCard, **fields: object) -> list[Any]:
    return [step.sparse_grid for step in make_plan(ask(**fields), card).steps]


def test_the_names_stand_for_these_rates() -> None:
    assert PRUNING_RATES == {"full": (0, 0), "balanced": (0.5, 0.7), "fast": (0.61, 0.86)}
    assert density_schedule("0.61-0.86") == density_schedule("fast")


@pytest.mark.parametrize("density", [0.5, None, (0.61, 0.86), ["fast"]])
def test_what_is_no_text_is_no_density(density: Any) -> None:
    with pytest.raises(ValueError, match=r"^density is .*; it must be full, balanced, fast, or two pruning rates"):
        density_schedule(density)


def test_the_plan_has_a_grid_for_each_step(cut: ModelCard) -> None:
    assert sparse(cut, density="fast") == FAST_GRIDS
    assert sparse(cut, density="0.61-0.86") == FAST_GRIDS


@pytest.mark.parametrize(("density", "first", "last"), [("balanced", 9, 11), ("fast", 6, 10), ("0.86-0.86", 6, 6)])
def test_the_ends_of_a_schedule_are_the_grids_nearest_to_its_rates(
    cut: ModelCard, density: str, first: int, last: int
) -> None:
    grids = sparse(cut, density=density, num_inference_steps=8)
    assert (grids[0], grids[-1]) == ((first, first), (last, last))
    assert grids == sorted(grids)


@pytest.mark.parametrize("density", [None, "full", "0-0"])
@pytest.mark.parametrize(("height", "width"), [(256, 256), (32, 96), (16, 16)])
def test_full_is_the_full_grid_at_every_step(cut: ModelCard, density: str | None, height: int, width: int) -> None:
    assert sparse(cut, density=density, height=height, width=width) == [(height // 16, width // 16)] * 4


def test_the_density_follows_the_steps_that_remain_and_not_the_shifted_noise(cut: ModelCard) -> None:
    shifted = make_plan(ask(density="fast"), replace(cut, time_shift=3.0))
    assert [step.sparse_grid for step in shifted.steps] == FAST_GRIDS


def test_a_network_without_segments_has_no_sparse_grid(card: ModelCard) -> None:
    assert sparse(card) == sparse(card, density="full") == [None] * 4


@pytest.mark.parametrize("density", ["balanced", "fast", "0.61-0.86", "0-0"])
def test_a_network_without_segments_takes_full_only(card: ModelCard, density: str) -> None:
    sentence = rf"^density is {density}; .*tiny has no segments.* give full, or .*\.$"
    with pytest.raises(RequestError, match=sentence) as refused:
        make_plan(ask(density=density), card)
    assert refused.value.field == "density"


def test_the_price_is_that_of_each_steps_grid(cut: ModelCard) -> None:
    one, two, three = (forward_flops(cut.config, (16, 16), sparse_grid=(g, g)) for g in (6, 8, 9))
    by_hand = one + one + two + three
    plan = make_plan(ask(density="fast"), cut)
    assert [step.flops for step in plan.steps] == [2 * one, 2 * one, 2 * two, 2 * three]
    assert make_plan(ask(density="fast", guidance_scale=1), cut).flops == by_hand
    assert make_plan(ask(density="fast", guidance_scale=3, num_images=2), cut).flops == 4 * by_hand
    full = forward_flops(cut.config, (16, 16))
    assert make_plan(ask(density="full", guidance_scale=1), cut).flops == 4 * full
    assert by_hand < 4 * full


@pytest.fixture
def pipeline(cut_pipeline: Pipeline) -> Pipeline:
    return cut_pipeline


@contextmanager
def grids_given(network: DiT, replaced_by: Any = ...) -> Iterator[list[Any]]:
    """The grid of each pass, as the network gets it; or another in its place."""
    given: list[Any] = []

    def look(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        given.append(kwargs["grid"])
        return args, kwargs if replaced_by is ... else kwargs | {"grid": replaced_by}

    hook = network.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield given
    finally:
        hook.remove()


def draw(pipeline: Pipeline, density: str | None, steps: int = 5) -> np.ndarray[Any, Any]:
    image: Image.Image = pipeline("x", seed=3, num_inference_steps=steps, density=density).images[0]
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("density", ["full", "balanced", "fast", "0.3-0.9"])
def test_the_network_gets_the_grids_of_the_plan(pipeline: Pipeline, card: ModelCard, density: str) -> None:
    with grids_given(pipeline.transformer) as given:
        draw(pipeline, density)
    planned = make_plan(ask(density=density, num_inference_steps=5), replace(card, config=pipeline.transformer.shape))
    assert given == [step.sparse_grid for step in planned.steps]
    assert len(set(given)) > (density != "full")


def test_full_is_the_picture_without_a_grid_and_others_differ(pipeline: Pipeline) -> None:
    with grids_given(pipeline.transformer, replaced_by=None):
        without = draw(pipeline, "fast")
    assert np.array_equal(draw(pipeline, "full"), without)
    assert np.array_equal(draw(pipeline, None), without)
    balanced, fast = draw(pipeline, "balanced"), draw(pipeline, "fast")
    for one, other in ((without, balanced), (without, fast), (balanced, fast)):
        assert np.abs(one - other).max() > 3


def test_nothing_is_kept_for_a_step(pipeline: Pipeline) -> None:
    """Position tables are kept for a grid, so more steps on the same grids add none."""
    draw(pipeline, "fast", steps=8)
    before = _cached_rope.cache_info().misses
    draw(pipeline, "fast", steps=24)
    assert _cached_rope.cache_info().misses == before


@pytest.mark.parametrize("density", ["half", "0.9-0.6", (0.61, 0.86)])
def test_the_pipeline_refuses_a_density_that_there_is_not(pipeline: Pipeline, density: Any) -> None:
    with pytest.raises(RequestError, match=r"^density is .*; it must be full, balanced, fast") as refused:
        draw(pipeline, density)
    assert refused.value.field == "density"
