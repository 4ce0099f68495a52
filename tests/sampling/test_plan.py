"""The plan of a request and its price."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mezzotint.dit.flops import forward_flops
from mezzotint.sampling.catalog import ModelCard
from mezzotint.sampling.plan import MAX_PIXEL_STEPS, make_plan, noise_times
from mezzotint.sampling.request import GenerateRequest, RequestError

same_card = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def ask(**fields: object) -> GenerateRequest:
    return GenerateRequest.model_validate({"prompt": "a red apple", "num_inference_steps": 4, **fields})


@given(st.integers(1, 250))
def test_noise_falls_evenly_from_1_and_never_reaches_0(num_steps: int) -> None:
    times = noise_times(num_steps)
    assert len(times) == num_steps
    assert times[0] == 1
    for above, below in pairwise([*times, 0.0]):
        assert above - below == pytest.approx(1 / num_steps)


@given(st.integers(1, 250), st.floats(1, 20))
def test_a_shift_spends_more_steps_near_the_noise(num_steps: int, shift: float) -> None:
    shifted = noise_times(num_steps, shift)
    assert shifted[0] == pytest.approx(1)
    assert all(above > below > 0 for above, below in pairwise(shifted))
    assert all(s >= t - 1e-12 for s, t in zip(shifted, noise_times(num_steps), strict=True))


def test_the_shift_is_that_of_diffusers_scheduler() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=noise_times(25))
    assert scheduler.sigmas[:-1].tolist() == pytest.approx(noise_times(25, 3.0), abs=1e-6)


def test_the_plan_follows_the_models_schedule(card: ModelCard) -> None:
    shifted = make_plan(ask(), replace(card, time_shift=3.0))
    assert [step.t for step in shifted.steps] == noise_times(4, 3.0)


def test_the_model_fills_in_size_and_guidance(card: ModelCard) -> None:
    plan = make_plan(ask(), card)
    assert [step.grid for step in plan.steps] == [(4, 4)] * 4
    assert all(step.guided for step in plan.steps)


def test_a_grid_is_rows_by_columns(card: ModelCard) -> None:
    assert make_plan(ask(width=96, height=32), card).steps[0].grid == (2, 6)


def test_without_guidance_a_step_is_one_pass_and_with_it_two(card: ModelCard) -> None:
    one_pass = forward_flops(card.config, (4, 4))
    assert make_plan(ask(guidance_scale=1), card).flops == 4 * one_pass
    assert make_plan(ask(guidance_scale=3), card).flops == 8 * one_pass
    assert make_plan(ask(guidance_scale=0), card).flops == 8 * one_pass


@same_card
@given(st.integers(1, 100), st.integers(1, 16), st.integers(1, 8), st.integers(1, 8))
def test_the_price_is_passes_times_pictures(
    card: ModelCard, num_steps: int, num_images: int, rows: int, columns: int
) -> None:
    request = ask(num_inference_steps=num_steps, num_images=num_images, height=rows * 16, width=columns * 16)
    plan = make_plan(request, card)
    assert plan.num_images == num_images
    assert len(plan.steps) == num_steps
    assert plan.flops == num_images * num_steps * 2 * forward_flops(card.config, (rows, columns))


@pytest.mark.parametrize("field", ["width", "height"])
@pytest.mark.parametrize(("side", "near"), [(63, "48 or 64"), (65, "64 or 80"), (1, "16"), (15, "16")])
def test_a_size_off_the_patch_is_refused_with_the_nearest_that_fit(
    card: ModelCard, field: str, side: int, near: str
) -> None:
    sentence = rf"^{field} is {side}; .* a multiple of 16, such as {near}\.$"
    with pytest.raises(RequestError, match=sentence) as caught:
        make_plan(ask(**{field: side}), card)
    assert caught.value.field == field


def test_a_request_that_costs_too_much_is_refused_before_it_runs(card: ModelCard) -> None:
    make_plan(ask(width=1024, height=1024, num_inference_steps=100, num_images=16), card)
    with pytest.raises(RequestError, match=f"at most {MAX_PIXEL_STEPS:,} is allowed"):
        make_plan(ask(width=1024, height=1024, num_inference_steps=250, num_images=16), card)


def test_the_fixture_is_a_folder_without_weights(model_folder: Path) -> None:
    assert not list(model_folder.rglob("*.safetensors"))
