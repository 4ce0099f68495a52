"""The fields of OpenAI's image requests in our words, and what is said of those that cannot be done here."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mezzotint.sampling.request import MAX_IMAGES, GenerateRequest, RequestError
from mezzotint.worker.api.strict import strict_request

SIZE_FIELDS = ("width", "height", "num_images")
"""Fields of our own that go by other names in OpenAI's requests."""
_SIZE = "^(auto|[1-9][0-9]{0,3}x[1-9][0-9]{0,3})$"


class OpenAIFields(BaseModel):
    """An image request in OpenAI's shape. Every field of a job's request but width, height and num_images may come
    with it (extra_body in OpenAI's client)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: Annotated[int | None, Field(ge=1, le=MAX_IMAGES, description="Number of pictures.")] = None
    size: Annotated[str | None, Field(pattern=_SIZE, description="WIDTHxHEIGHT in pixels, or auto.")] = None
    response_format: Literal["b64_json", "url"] | None = None
    stream: bool | None = None
    partial_images: Annotated[int | None, Field(ge=0, le=3, description="With stream: previews, JPEG.")] = None
    quality: Literal["auto"] | None = None
    style: None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = None
    output_format: Literal["png"] | None = None
    output_compression: Literal[100] | None = None
    input_fidelity: None = None
    user: Annotated[str | None, Field(max_length=512, description="Taken, and not used.")] = None


_WANTED = {
    "n": f"it must be a whole number from 1 to {MAX_IMAGES}",
    "size": 'it must be "auto" or WIDTHxHEIGHT in pixels, such as "256x256"',
    "response_format": 'it must be "b64_json" or "url"',
    "stream": "it must be true or false",
    "partial_images": "it must be a whole number from 0 to 3",
    "quality": 'only "auto" is there, and num_inference_steps sets how much work a picture gets',
    "style": "there are no styles here, so say it in the prompt",
    "background": 'pictures here have no transparency, so it must be "auto" or "opaque"',
    "moderation": 'prompts are not moderated here, so it must be "auto" or "low"',
    "output_format": 'pictures here are PNG files, so it must be "png"',
    "output_compression": "pictures here are PNG files, which lose nothing, so it must be 100",
    "input_fidelity": "pictures are not taken as input here, so leave it out",
    "user": "it must be text of at most 512 characters",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagesRequest:
    """What was asked for: a job, and how its pictures are to come back."""

    request: GenerateRequest
    as_url: bool
    stream: bool
    num_partial: int


def parse_images_request(raw: Mapping[str, Any]) -> ImagesRequest:
    """Split a body into a job and the form of the answer. Raises RequestError with one sentence."""
    theirs = _check({name: raw[name] for name in raw if name in OpenAIFields.model_fields})
    ours = {name: value for name, value in raw.items() if name not in OpenAIFields.model_fields}
    for field in SIZE_FIELDS:
        if field in ours:
            raise RequestError(field, f"{field} is not a field of this route; give size and n, as OpenAI does.")
    request = strict_request({name: value for name, value in ours.items() if value is not None} | _sizes(theirs))
    return ImagesRequest(
        request=request, as_url=theirs.response_format == "url", stream=bool(theirs.stream),
        num_partial=theirs.partial_images or 0,
    )


def _check(fields: Mapping[str, Any]) -> OpenAIFields:
    try:
        return OpenAIFields.model_validate_json(json.dumps(fields), strict=True)
    except ValidationError as error:
        field = str(error.errors(include_url=False)[0]["loc"][0])
        raise RequestError(field, f"{field} is {json.dumps(fields[field])[:60]}; {_WANTED[field]}.") from None


def _sizes(fields: OpenAIFields) -> dict[str, int]:
    chosen = {} if fields.n is None else {"num_images": fields.n}
    if fields.size in (None, "auto"):
        return chosen
    width, _, height = str(fields.size).partition("x")
    return chosen | {"width": int(width), "height": int(height)}
