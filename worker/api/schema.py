"""The OpenAPI document. GenerateRequest itself describes requests, so that its new fields appear by themselves."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from mezzotint.sampling.request import GenerateRequest
from mezzotint.worker.api.answers import ErrorAnswer
from mezzotint.worker.api.openai_fields import SIZE_FIELDS, OpenAIFields

JOB_REQUEST, IMAGES_REQUEST = "GenerateRequest", "ImagesRequest"
_REF = "#/components/schemas/{model}"
_ERRORS = {"4XX": "The request cannot be done as asked.", "5XX": "The service cannot do it now."}


def body_of(name: str, media_type: str = "application/json") -> dict[str, Any]:
    """What a route's `openapi_extra` says of its body."""
    schema = {"$ref": _REF.format(model=name)}
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}


def describe(app: FastAPI, *, needs_token: bool) -> None:
    """Give the application its document."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, needs_token)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI, needs_token: bool) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes,
    )
    components = document.setdefault("components", {})
    components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    # Where no token is needed one may still come with a token, and then acts as its owner.
    document["security"] = [{"token": []}] if needs_token else [{}, {"token": []}]
    schemas = components.setdefault("schemas", {})
    schemas.update(_request_schemas())
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own errors; ours have another shape
        schemas.pop(name, None)
    for path in document["paths"].values():
        for operation in path.values():
            _describe_errors(operation)
    return document


def _request_schemas() -> dict[str, Any]:
    schemas = _with_parts(JOB_REQUEST, GenerateRequest) | _with_parts("OpenAIFields", OpenAIFields)
    schemas |= _with_parts("ErrorAnswer", ErrorAnswer)
    own, theirs = schemas[JOB_REQUEST], schemas.pop("OpenAIFields")
    rest = {name: field for name, field in own["properties"].items() if name not in SIZE_FIELDS}
    schemas[IMAGES_REQUEST] = own | {
        "title": IMAGES_REQUEST, "description": OpenAIFields.__doc__, "properties": theirs["properties"] | rest,
    }
    return schemas


def _with_parts(name: str, model: type[BaseModel]) -> dict[str, Any]:
    """A model's schema and those of the models inside it, by name."""
    schema = model.model_json_schema(ref_template=_REF)
    return {**schema.pop("$defs", {}), name: schema}


def _describe_errors(operation: dict[str, Any]) -> None:
    operation["responses"].pop("422", None)
    content = {"application/json": {"schema": {"$ref": _REF.format(model="ErrorAnswer")}}}
    for status, description in _ERRORS.items():
        operation["responses"][status] = {"description": description, "content": content}
