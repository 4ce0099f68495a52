"""A request as it comes over HTTP: with JSON's own types, and with models by name only."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from mezzotint.sampling.catalog import model_names
from mezzotint.sampling.request import GenerateRequest, RequestError, allowed, parse_request


def strict_request(raw: Mapping[str, Any]) -> GenerateRequest:
    """Check a request. In Python "3" may stand for 3; in JSON it may not, for clients are generated from the schema.

    Raises RequestError with one sentence.
    """
    request = parse_request(raw)
    try:
        GenerateRequest.model_validate_json(json.dumps(dict(raw)), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(first["loc"][0])
        value = json.dumps(first["input"])[:60]
        raise RequestError(field, f"{field} is {value}; it must be {allowed(field)}.") from None
    _check_model(request.model)
    return request


def _check_model(name: str) -> None:
    """A folder's path would tell what lies on this machine's disks, so only names are taken."""
    names = model_names()
    if name not in names:
        raise RequestError("model", f"model is {name[:60]!r}; the models here are {', '.join(names) or 'none'}.")
