"""The one schema of a generation, for every door: page, queue, HTTP, command line and Python.

No torch here: the page and the command line read it at once.
"""

import json
import math
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mezzotint.sampling.density_presets import DENSITIES_IN_WORDS, density_schedule

MAX_PROMPT_CHARACTERS = 2000
MAX_SIDE = 1024
MAX_STEPS = 250
MAX_IMAGES = 16
MAX_SEED = 2**32 - 1


class RequestError(ValueError):
    """A request that cannot be done as asked.

    `field` names the field; the text is one sentence with the value, the allowed range and what to do.
    """

    def __init__(self, field: str, sentence: str) -> None:
        super().__init__(sentence)
        self.field = field

    def __reduce__(self) -> tuple[type["RequestError"], tuple[str, str]]:
        return RequestError, (self.field, str(self))


class GenerateRequest(BaseModel):
    """What a person asks for. `None` means the model's own default, filled in by `intake.accept`.

    Sizes are in pixels; `seed` belongs to the first picture, and picture i has seed + i. `density` is how many tokens
    a model with segments keeps: see `density_presets`; other models take "full" only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    prompt: Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS)]
    negative_prompt: Annotated[str | None, Field(max_length=MAX_PROMPT_CHARACTERS)] = None
    model: Annotated[str, Field(min_length=1, max_length=512)] = "emoji-256"
    width: Annotated[int | None, Field(ge=1, le=MAX_SIDE, strict=True)] = None
    height: Annotated[int | None, Field(ge=1, le=MAX_SIDE, strict=True)] = None
    num_inference_steps: Annotated[int, Field(ge=1, le=MAX_STEPS, strict=True)] = 25
    guidance_scale: Annotated[float | None, Field(ge=0, le=30)] = None
    density: str | None = None
    seed: Annotated[int | None, Field(ge=0, le=MAX_SEED - MAX_IMAGES, strict=True)] = None
    num_images: Annotated[int, Field(ge=1, le=MAX_IMAGES, strict=True)] = 1
    include_prompt_in_metadata: bool = True

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def _plain_text(cls, text: str | None) -> str | None:
        if text is None:
            return None
        if any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" for c in text):
            raise ValueError("holds a control character; send plain text")
        return text.strip()

    @field_validator("prompt")
    @classmethod
    def _not_empty(cls, text: str) -> str:
        if not text:
            raise ValueError("is empty; say in a few words what to draw")
        return text

    @field_validator("density")
    @classmethod
    def _known_density(cls, density: str | None) -> str | None:
        if density is None:
            return None
        try:
            density_schedule(density)
        except ValueError:
            raise ValueError(f"is {_shown(density)}; it must be {allowed('density')}") from None
        return density


def parse_request(raw: Mapping[str, Any]) -> GenerateRequest:
    """Check a request's shape and ranges. Raises RequestError naming the first bad field."""
    try:
        return GenerateRequest.model_validate(dict(raw))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(first["loc"][0]) if first["loc"] else "request"
        raise RequestError(field, _sentence(field, first)) from None


def _sentence(field: str, error: Mapping[str, Any]) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "missing":
        return f"{field} is missing; it must be given."
    if kind == "extra_forbidden":
        known = ", ".join(GenerateRequest.model_fields)
        return f"{field} is not a field of a request; the fields are {known}."
    if kind == "value_error":
        return f"{field} {context['error']}."
    if kind == "string_too_long":
        return (
            f"{field} has {len(error['input']):,} characters; "
            f"at most {context['max_length']:,} are allowed, so shorten it."
        )
    return f"{field} is {_shown(error['input'])}; it must be {allowed(field)}."


def _shown(value: Any) -> str:
    """A value as the user wrote it, short enough for one sentence."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def allowed(field: str) -> str:
    """The allowed values of a field in words: "a whole number from 1 to 250"."""
    if field == "density":
        return DENSITIES_IN_WORDS
    info = GenerateRequest.model_fields[field]
    low = next((m.ge for m in info.metadata if hasattr(m, "ge")), None)
    high = next((m.le for m in info.metadata if hasattr(m, "le")), None)
    kind = str(info.annotation)
    if "bool" in kind:
        return "true or false"
    if "str" in kind:
        return "text"
    return f"{'a whole number' if 'int' in kind else 'a number'} from {low} to {high}"
