"""OpenAI's image routes, called by OpenAI's own client."""

import base64
import http.client
import io
import json
import time
from collections.abc import Callable
from typing import Any

import openai
import pytest
from PIL import Image

from mezzotint.sampling.media import read_metadata
from mezzotint.worker.api.openai_fields import OpenAIFields


@pytest.fixture
def client(lasting_gateway: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{lasting_gateway.url}/v1", api_key="unused", timeout=120, max_retries=0)


@pytest.fixture
def model(lasting_gateway: Any) -> str:
    return str(lasting_gateway.model)


def opened(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_pictures_come_in_base64_with_their_settings_inside(client: openai.OpenAI, model: str) -> None:
    answer = client.images.generate(
        prompt="a red apple", model=model, n=3, size="96x64", extra_body={"seed": 7, "num_inference_steps": 2}
    )
    assert answer.data is not None
    images = [opened(str(each.b64_json)) for each in answer.data]
    assert [image.size for image in images] == [(96, 64)] * 3
    requests = [read_metadata(image)["request"] for image in images]
    assert [(r["seed"], r["num_inference_steps"], r["prompt"]) for r in requests] == [
        (seed, 2, "a red apple") for seed in (7, 8, 9)
    ]
    assert answer.created <= time.time() + 1


def test_pictures_come_by_address(client: openai.OpenAI, model: str, lasting_gateway: Any) -> None:
    answer = client.images.generate(prompt="a red apple", model=model, response_format="url")
    assert answer.data is not None
    [picture] = answer.data
    assert str(picture.url).startswith(f"{lasting_gateway.url}/media/")
    assert picture.b64_json is None
    file = lasting_gateway.call("GET", str(picture.url).removeprefix(lasting_gateway.url))
    assert Image.open(io.BytesIO(file.body)).size == (64, 64)


def test_a_picture_is_streamed_with_partial_images(
    make_service: Callable[..., Any], make_gateway: Callable[..., Any]
) -> None:
    service = make_service(null_step_s=0.2)
    service.start_broker()
    service.start_worker()
    gateway = make_gateway(service)
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="unused", timeout=120, max_retries=0)
    stream = client.images.generate(
        prompt="a red apple", model=gateway.model, stream=True, partial_images=2, n=2,
        extra_body={"num_inference_steps": 20},
    )
    events = list(stream)
    kinds = [event.type for event in events]
    assert kinds[-2:] == ["image_generation.completed"] * 2
    assert 1 <= len(kinds) - 2 <= 2
    for index, event in enumerate(events[:-2]):
        assert (event.type, event.partial_image_index) == ("image_generation.partial_image", index)
        assert opened(event.b64_json).format == "JPEG"
    assert [opened(event.b64_json).format for event in events[-2:]] == ["PNG", "PNG"]


def test_models_are_listed(client: openai.OpenAI, model: str) -> None:
    assert {model, "emoji-256"} <= {each.id for each in client.models.list()}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"n": 17}, "n is 17; it must be a whole number from 1 to 16"),
        ({"n": "2"}, 'n is "2"; it must be a whole number'),
        ({"size": "big"}, 'size is "big"; it must be "auto" or WIDTHxHEIGHT'),
        ({"size": "2048x64"}, "width is 2048; it must be a whole number from 1 to 1024"),
        ({"size": "65x64"}, "multiple of 32, such as 64 or 96"),
        ({"response_format": "gif"}, 'it must be "b64_json" or "url"'),
        ({"quality": "hd"}, "num_inference_steps sets how much work"),
        ({"style": "vivid"}, "there are no styles here"),
        ({"background": "transparent"}, "no transparency"),
        ({"output_format": "webp"}, "pictures here are PNG files"),
        ({"output_compression": 50}, "pictures here are PNG files"),
        ({"partial_images": 4}, "from 0 to 3"),
        ({"stream": "yes"}, "it must be true or false"),
        ({"model": "dall-e-3"}, "model is 'dall-e-3'; the models here are "),
        ({"width": 64}, "give size and n"),
        ({"colour": "red"}, "colour is not a field"),
        ({"guidance_scale": "3"}, "guidance_scale is \"3\"; it must be a number from 0.0 to 30.0"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(
    lasting_gateway: Any, fields: dict[str, Any], says: str
) -> None:
    body = {"prompt": "a red apple", "model": lasting_gateway.model} | fields
    answer = lasting_gateway.call("POST", "/v1/images/generations", body)
    assert (answer.status, answer.error["code"]) == (400, "invalid_request")
    assert says.replace("0.0 to 30.0", "0 to 30") in answer.error["message"]


def test_every_field_of_openai_is_taken_or_has_its_sentence(lasting_gateway: Any) -> None:
    for field in OpenAIFields.model_fields:
        answer = lasting_gateway.call(
            "POST", "/v1/images/generations", {"prompt": "x", "model": lasting_gateway.model, field: {"no": 1}}
        )
        assert answer.status == 400
        assert answer.error["message"].startswith(f'{field} is {{"no": 1}}; ')


@pytest.mark.parametrize("route", ["edits", "variations"])
def test_pictures_as_input_are_refused_clearly(client: openai.OpenAI, route: str) -> None:
    picture = io.BytesIO()
    Image.effect_noise((1500, 1500), 90).save(picture, "PNG")
    picture.name = "picture.png"
    call: Any = client.images.edit if route == "edits" else client.images.create_variation
    fields = {"prompt": "greener"} if route == "edits" else {}
    picture.seek(0)
    with pytest.raises(openai.BadRequestError, match="draw from text alone") as refused:
        call(image=picture, **fields)
    assert refused.value.code == "not_supported"


def test_a_failed_drawing_is_told_and_not_asked_for_again(
    make_service: Callable[..., Any], make_gateway: Callable[..., Any]
) -> None:
    service = make_service(engine="nowhere:Engine")
    service.start_broker()
    service.start_worker()
    gateway = make_gateway(service)
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="unused", timeout=120)
    with pytest.raises(openai.InternalServerError, match="MEZZOTINT_ENGINE is 'nowhere:Engine'"):
        client.images.generate(prompt="a red apple", model=gateway.model)
    assert len(service.client.list().jobs) == 1
    with pytest.raises(openai.APIError, match="MEZZOTINT_ENGINE is 'nowhere:Engine'"):
        list(client.images.generate(prompt="a red apple", model=gateway.model, stream=True))


def begin(gateway: Any, stream: bool, **headers: str) -> tuple[http.client.HTTPConnection, str]:
    """Ask for a picture that takes long, and wait until its job is there."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    body = json.dumps({"prompt": "long", "model": gateway.model, "num_inference_steps": 250, "stream": stream})
    connection.request("POST", "/v1/images/generations", body, {"Content-Type": "application/json", **headers})
    until = time.monotonic() + 60
    while not (jobs := gateway.service.client.list(state="queued").jobs):
        assert time.monotonic() < until
        time.sleep(0.05)
    return connection, jobs[0].id


@pytest.mark.parametrize("stream", [False, True])
def test_a_caller_who_leaves_ends_the_job_and_one_with_a_key_does_not(
    make_service: Callable[..., Any], make_gateway: Callable[..., Any], until: Callable[..., None], stream: bool
) -> None:
    service = make_service(null_step_s=0.2)
    service.start_broker()
    gateway = make_gateway(service)
    for headers, state in (({}, "cancelled"), ({"Idempotency-Key": "k"}, "queued")):
        connection, job_id = begin(gateway, stream, **headers)
        if stream:
            time.sleep(1)  # the answer begins only now
        connection.close()
        if state == "cancelled":
            until(lambda j=job_id: service.client.get(j).state == "cancelled", 60, service.log)
            assert service.client.get(job_id).state == state
        else:
            time.sleep(2)
            assert service.client.get(job_id).state == state


def test_a_picture_that_does_not_come_in_time_leaves_its_job(
    make_service: Callable[..., Any], make_gateway: Callable[..., Any], events: Callable[[bytes], Any]
) -> None:
    service = make_service(http_wait_s=1)
    service.start_broker()
    gateway = make_gateway(service)
    answer = gateway.call("POST", "/v1/images/generations", {"prompt": "x", "model": gateway.model})
    assert (answer.status, answer.error["code"]) == (504, "timeout")
    [job] = service.client.list().jobs
    assert job.id in answer.error["hint"]
    assert job.state == "queued"
    body = {"prompt": "x", "model": gateway.model, "stream": True}
    [event] = events(gateway.call("POST", "/v1/images/generations", body).body)
    assert (event["event"], event["data"]["error"]["code"]) == ("error", "timeout")
    time.sleep(1)
    assert [each.state for each in service.client.list().jobs] == ["queued", "queued"]
