"""Every door takes requests in by one function."""

from pathlib import Path

import pytest

from mezzotint.sampling.catalog import find_model
from mezzotint.sampling.intake import accept
from mezzotint.sampling.plan import make_plan
from mezzotint.sampling.request import MAX_IMAGES, MAX_SEED, GenerateRequest, RequestError


def test_an_accepted_request_leaves_nothing_to_a_default_that_could_change(model_folder: Path) -> None:
    request, plan = accept({"prompt": "a red apple", "model": str(model_folder)})
    assert (request.width, request.height, request.guidance_scale) == (64, 64, 2.5)
    assert (request.density, request.guidance_density, request.cache) == ("full", "same", "off")
    assert request.seed is not None
    assert 0 <= request.seed <= MAX_SEED - MAX_IMAGES
    assert len(plan.steps) == request.num_inference_steps


def test_what_was_given_is_kept(model_folder: Path) -> None:
    given = GenerateRequest(
        prompt="a red apple", model=str(model_folder), width=32, height=96, guidance_scale=0, seed=0,
        num_inference_steps=3, density="full", guidance_density="same", cache="off",
    )
    request, _ = accept(given)
    assert request == given


def test_accepting_twice_changes_nothing_more(model_folder: Path) -> None:
    once, plan = accept({"prompt": "a red apple", "model": str(model_folder)})
    assert accept(once) == (once, plan)
    assert accept(once.model_dump(mode="json"))[0] == once


def test_two_requests_without_a_seed_get_two_pictures(model_folder: Path) -> None:
    seeds = {accept({"prompt": "a red apple", "model": str(model_folder)})[0].seed for _ in range(8)}
    assert len(seeds) == 8


def test_the_plan_is_that_of_the_complete_request(model_folder: Path) -> None:
    request, plan = accept({"prompt": "a red apple", "model": str(model_folder), "num_images": 3})
    assert plan == make_plan(request, find_model(str(model_folder)))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"width": 65}, "width"),
        ({"density": "fast"}, "density"),
        ({"guidance_density": "fast"}, "guidance_density"),
        ({"cache": "taylor"}, "cache"),
        ({"model": "nobody"}, "model"),
        ({"num_inference_steps": 10**9}, "num_inference_steps"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_queued(
    model_folder: Path, fields: dict[str, object], field: str
) -> None:
    with pytest.raises(RequestError) as caught:
        accept({"prompt": "a red apple", "model": str(model_folder), **fields})
    assert caught.value.field == field
