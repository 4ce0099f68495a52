"""JSON bodies, read with care: bounded, declared as JSON, and nothing that JSON does not have."""

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, NoReturn

from fastapi import Depends, Request

from mezzotint.worker.api.problems import Problem

MAX_JSON_BYTES = 128 * 1024
"""The longest prompts, each character escaped, take half of it."""
MAX_UPLOAD_BYTES = 32 * 1024 * 1024


async def json_object(request: Request) -> dict[str, Any]:
    """The body as an object. Raises Problem with 400, 413 or 415."""
    _check_type(request, "application/json")
    data = b"".join([chunk async for chunk in _chunks(request, MAX_JSON_BYTES)])
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse)
    except UnicodeDecodeError:
        raise Problem(400, "invalid_json", "the body is not UTF-8; send JSON in UTF-8.") from None
    except RecursionError:
        raise Problem(400, "invalid_json", "the body is nested too deeply; send one flat object.") from None
    except ValueError as error:
        raise Problem(400, "invalid_json", f"the body is not JSON ({error}).") from None
    if not isinstance(value, dict):
        raise Problem(400, "invalid_json", f"the body is {_kind(value)}; send a JSON object.")
    return value


async def drop(request: Request) -> None:
    """Take an upload in and forget it, so that its sender reads the answer. Raises Problem with 413."""
    async for _ in _chunks(request, MAX_UPLOAD_BYTES):
        pass


async def _chunks(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
    """The body in pieces. Raises Problem with 413 as soon as it is known to be longer than `max_bytes`."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        _too_large(max_bytes)
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            _too_large(max_bytes)
        yield chunk


JsonObject = Annotated[dict[str, Any], Depends(json_object)]


def _check_type(request: Request, wanted: str) -> None:
    sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if sent != wanted:
        raise Problem(415, "unsupported_media_type", f"Content-Type is {sent!r}; send {wanted}.")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise Problem(415, "unsupported_media_type", f"Content-Encoding is {encoding!r}; send the body as it is.")


def _too_large(max_bytes: int) -> NoReturn:
    raise Problem(
        413, "too_large", f"the body is larger than {max_bytes:,} bytes; send less.", headers={"Connection": "close"}
    )


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
