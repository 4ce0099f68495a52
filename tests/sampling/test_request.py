"""What a person may ask for, and the one sentence that says why not."""

import pickle

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mezzotint.sampling.request import (
    MAX_IMAGES,
    MAX_PROMPT_CHARACTERS,
    MAX_SEED,
    MAX_SIDE,
    MAX_STEPS,
    GenerateRequest,
    RequestError,
    allowed,
    parse_request,
)


def refusal(**fields: object) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse_request({"prompt": "a red apple", **fields})
    return caught.value


def test_a_prompt_is_all_that_is_needed() -> None:
    request = parse_request({"prompt": "  a red apple\n"})
    assert request.prompt == "a red apple"
    assert (request.width, request.guidance_scale, request.seed) == (None, None, None)


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"prompt": ""}, "prompt", "is empty"),
        ({"prompt": " \n\t "}, "prompt", "is empty"),
        ({"prompt": None}, "prompt", "null"),
        ({"prompt": 7}, "prompt", "must be text"),
        ({"prompt": "a\x00b"}, "prompt", "control character"),
        ({"prompt": "a\x1b[2J"}, "prompt", "control character"),
        ({"prompt": "\ud800"}, "prompt", ""),
        ({"negative_prompt": "a\x07b"}, "negative_prompt", "control character"),
        ({"prompt": "x" * 1_000_000}, "prompt", "1,000,000 characters; at most 2,000"),
        ({"num_inference_steps": 10**9}, "num_inference_steps", "1000000000; it must be a whole number"),
        ({"num_inference_steps": 0}, "num_inference_steps", "from 1 to 250"),
        ({"num_inference_steps": -1}, "num_inference_steps", "-1"),
        ({"num_inference_steps": "25"}, "num_inference_steps", '"25"'),
        ({"num_inference_steps": 2.5}, "num_inference_steps", "2.5"),
        ({"num_inference_steps": True}, "num_inference_steps", "true"),
        ({"num_inference_steps": None}, "num_inference_steps", "null"),
        ({"guidance_scale": float("nan")}, "guidance_scale", "nan; it must be a number from 0 to 30"),
        ({"guidance_scale": float("inf")}, "guidance_scale", "inf"),
        ({"guidance_scale": -0.1}, "guidance_scale", "from 0 to 30"),
        ({"guidance_scale": 31}, "guidance_scale", "31"),
        ({"width": 100_000}, "width", "100000; it must be a whole number from 1 to 1024"),
        ({"height": 0}, "height", "from 1 to 1024"),
        ({"width": float("nan")}, "width", "nan"),
        ({"seed": -1}, "seed", f"from 0 to {MAX_SEED - MAX_IMAGES}"),
        ({"seed": 2**64}, "seed", str(2**64)),
        ({"num_images": 17}, "num_images", "from 1 to 16"),
        ({"model": ""}, "model", '""'),
        ({"include_prompt_in_metadata": "perhaps"}, "include_prompt_in_metadata", "true or false"),
        ({"density": "half"}, "density", '"half"; it must be full, balanced, fast, or two pruning rates from 0 to'),
        ({"density": "Fast"}, "density", '"Fast"'),
        ({"density": ""}, "density", '""'),
        ({"density": 0.5}, "density", "0.5; it must be full, balanced, fast"),
        ({"density": [0.61, 0.86]}, "density", "[0.61, 0.86]; it must be full"),
        ({"density": "0.61"}, "density", '"0.61"'),
        ({"density": "0.61-1"}, "density", "0 to under 1"),
        ({"density": "0.9-0.6"}, "density", "the lower one first"),
        ({"density": "-0.1-0.6"}, "density", '"-0.1-0.6"'),
        ({"density": "0.1-0.6\n"}, "density", "\\n"),
        ({"density": "0.61-0.86-0.9"}, "density", "0.61-0.86-0.9"),
        ({"guidance_density": "half"}, "guidance_density", '"half"; it must be same, skip, full, balanced, fast, or'),
        ({"guidance_density": 0.5}, "guidance_density", "0.5; it must be same"),
        ({"guidance_density": "0.9-0.6"}, "guidance_density", "the lower one first"),
        ({"density": "same"}, "density", '"same"; it must be full'),
        ({"density": "skip"}, "density", '"skip"'),
        ({"cache": "on"}, "cache", '"on"; it must be off, first-block or taylor, the last two with a number'),
        ({"cache": ""}, "cache", '""'),
        ({"cache": True}, "cache", "true"),
        ({"cache": "first-block:1.01"}, "cache", "a change from 0 to 1"),
        ({"cache": "first-block:-0.1"}, "cache", '"first-block:-0.1"'),
        ({"cache": "first-block:"}, "cache", '"first-block:"'),
        ({"cache": "taylor:0"}, "cache", "from 1 to 10"),
        ({"cache": "taylor:11"}, "cache", '"taylor:11"'),
        ({"cache": "taylor:2.5"}, "cache", '"taylor:2.5"'),
        ({"cache": "taylor:" + "9" * 60}, "cache", "..."),
        ({"cache": "off:1"}, "cache", '"off:1"'),
        ({"promt": "a"}, "promt", "is not a field"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(
    fields: dict[str, object], field: str, words: str
) -> None:
    error = refusal(**fields)
    sentence = str(error)
    assert error.field == field
    assert sentence.startswith(f"{field} ")
    assert words in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert len(sentence) < 300


def test_a_missing_prompt_is_named() -> None:
    with pytest.raises(RequestError, match=r"^prompt is missing; it must be given\.$"):
        parse_request({})


def test_the_bounds_themselves_are_allowed() -> None:
    request = parse_request({
        "prompt": "x" * MAX_PROMPT_CHARACTERS, "width": MAX_SIDE, "height": 1,
        "num_inference_steps": MAX_STEPS, "guidance_scale": 30, "num_images": MAX_IMAGES,
        "seed": MAX_SEED - MAX_IMAGES,
    })
    assert request.seed is not None
    assert request.seed + request.num_images <= MAX_SEED


@pytest.mark.parametrize("density", [None, "full", "balanced", "fast", "0.61-0.86", "0-0", ".5-.5"])
def test_a_density_is_kept_as_it_was_written(density: str | None) -> None:
    assert parse_request({"prompt": "a", "density": density}).density == density


@pytest.mark.parametrize("density", [None, "same", "skip", "full", "fast", "0.61-0.86"])
def test_a_density_of_guidance_is_kept_as_it_was_written(density: str | None) -> None:
    assert parse_request({"prompt": "a", "guidance_density": density}).guidance_density == density


@pytest.mark.parametrize(
    "cache", [None, "off", "first-block", "first-block:0.05", "first-block:1", "taylor", "taylor:10"]
)
def test_a_cache_is_kept_as_it_was_written(cache: str | None) -> None:
    assert parse_request({"prompt": "a", "cache": cache}).cache == cache


def request_or_error(raw: dict[str, object]) -> GenerateRequest | RequestError:
    try:
        return parse_request(raw)
    except RequestError as error:
        return error


JSON_VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30) | st.lists(st.integers())
)


@given(st.dictionaries(st.sampled_from([*GenerateRequest.model_fields, "other"]), JSON_VALUES))
def test_any_input_is_either_a_request_within_bounds_or_a_sentence(raw: dict[str, object]) -> None:
    request = request_or_error(raw)
    if isinstance(request, RequestError):
        assert request.field in raw or request.field == "prompt"
        assert str(request).startswith(request.field)
        return
    if request.prompt is None:
        assert request.class_label is not None
    else:
        assert request.prompt.strip() == request.prompt != ""
    label = request.class_label
    assert not isinstance(label, str) or label.strip() == label != ""
    assert 1 <= request.num_inference_steps <= MAX_STEPS
    assert request.guidance_scale is None or 0 <= request.guidance_scale <= 30
    assert request.seed is None or 0 <= request.seed <= MAX_SEED - MAX_IMAGES


@given(st.text(min_size=1, max_size=40))
def test_a_request_survives_json(prompt: str) -> None:
    request = request_or_error({"prompt": prompt, "seed": 7, "guidance_scale": 2.5})
    assume(isinstance(request, GenerateRequest))
    assert GenerateRequest.model_validate_json(request.model_dump_json()) == request


def test_an_error_survives_the_way_through_a_queue() -> None:
    error = pickle.loads(pickle.dumps(refusal(num_images=17)))
    assert error.field == "num_images"
    assert "17" in str(error)


@pytest.mark.parametrize("field", GenerateRequest.model_fields)
def test_the_allowed_values_of_each_field_can_be_said(field: str) -> None:
    words = allowed(field)
    assert "None" not in words
    assert words in ("text", "true or false") or " from " in words
