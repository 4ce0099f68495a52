"""The one schema of a generation, for every door: page, queue, HTTP, command line and Python.

No torch here: the page and the command line read it at once.
"""

import json
import math
import unicodedata
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from mezzotint.sampling.cache_presets import CACHES_IN_WORDS, cache_setting
from mezzotint.sampling.density_presets import (
    DENSITIES_IN_WORDS,
    GUIDANCE_DENSITIES_IN_WORDS,
    check_guidance_density,
    density_schedule,
)

MAX_PROMPT_CHARACTERS = 2000
MAX_LABEL_CHARACTERS = 200
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

    A model that draws by text takes `prompt`, one that draws by class labels takes `class_label`: the number of a
    class, or a name that the model's folder gives it. Which of both a model is, `intake.accept` sees.
    Sizes are in pixels; `seed` belongs to the first picture, and picture i has seed + i. `density` is how many tokens
    a model with segments keeps: see `density_presets`; other models take "full" only. `guidance_density` is that of the
    guidance's branch, "same" as the conditional one if not given, and `cache` a step cache: see `cache_presets`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    class_label: (
        Annotated[int, Field(ge=0, strict=True)] | Annotated[str, Field(max_length=MAX_LABEL_CHARACTERS)] | None
    ) = None
    prompt: Annotated[str | None, Field(max_length=MAX_PROMPT_CHARACTERS, validate_default=True)] = None
    negative_prompt: Annotated[str | None, Field(max_length=MAX_PROMPT_CHARACTERS)] = None
    model: Annotated[str, Field(min_length=1, max_length=512)] = "emoji-256"
    width: Annotated[int | None, Field(ge=1, le=MAX_SIDE, strict=True)] = None
    height: Annotated[int | None, Field(ge=1, le=MAX_SIDE, strict=True)] = None
    num_inference_steps: Annotated[int, Field(ge=1, le=MAX_STEPS, strict=True)] = 25
    guidance_scale: Annotated[float | None, Field(ge=0, le=30)] = None
    density: str | None = None
    guidance_density: str | None = None
    cache: str | None = None
    seed: Annotated[int | None, Field(ge=0, le=MAX_SEED - MAX_IMAGES, strict=True)] = None
    num_images: Annotated[int, Field(ge=1, le=MAX_IMAGES, strict=True)] = 1
    include_prompt_in_metadata: bool = True

    @field_validator("prompt", "negative_prompt", "class_label")
    @classmethod
    def _plain_text(cls, text: str | int | None) -> str | int | None:
        if not isinstance(text, str):
            return text
        if any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" for c in text):
            raise ValueError("holds a control character; send plain text")
        return text.strip()

    @field_validator("class_label")
    @classmethod
    def _not_empty(cls, label: str | int | None) -> str | int | None:
        if label == "":
            raise ValueError("is empty; give the number or the name of a class")
        return label

    @field_validator("prompt")
    @classmethod
    def _says_something(cls, text: str | None, info: ValidationInfo) -> str | None:
        if text is None and info.data.get("class_label") is None:
            raise ValueError("is null; it must be text")
        if text == "":
            raise ValueError("is empty; say in a few words what to draw")
        return text

    @field_validator("density", "guidance_density", "cache")
    @classmethod
    def _one_that_there_is(cls, written: str | None, info: ValidationInfo) -> str | None:
        if written is None:
            return None
        try:
            _READERS[str(info.field_name)](written)
        except ValueError:
            raise ValueError(f"is {_shown(written)}; it must be {allowed(str(info.field_name))}") from None
        return written


_READERS: dict[str, Callable[[str], object]] = {
    "density": density_schedule, "guidance_density": check_guidance_density, "cache": cache_setting,
}
"""What raises ValueError for a value of a field that there is not."""

_IN_WORDS = {
    "density": DENSITIES_IN_WORDS,
    "guidance_density": GUIDANCE_DENSITIES_IN_WORDS,
    "cache": CACHES_IN_WORDS,
    "class_label": "the number of a class from 0 on, or its name",
}


def parse_request(raw: Mapping[str, Any]) -> GenerateRequest:
    """Check a request's shape and ranges. Raises RequestError naming the first bad field."""
    if "prompt" not in raw and raw.get("class_label") is None:
        raise RequestError("prompt", "prompt is missing; it must be given.")
    try:
        return GenerateRequest.model_validate(dict(raw))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(first["loc"][0]) if first["loc"] else "request"
        raise RequestError(field, _sentence(field, first)) from None


def _sentence(field: str, error: Mapping[str, Any]) -> str:
    kind, context = error["type"], error.get("ctx", {})
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
    if field in _IN_WORDS:
        return _IN_WORDS[field]
    info = GenerateRequest.model_fields[field]
    low = next((m.ge for m in info.metadata if hasattr(m, "ge")), None)
    high = next((m.le for m in info.metadata if hasattr(m, "le")), None)
    kind = str(info.annotation)
    if "bool" in kind:
        return "true or false"
    if "str" in kind:
        return "text"
    return f"{'a whole number' if 'int' in kind else 'a number'} from {low} to {high}"
