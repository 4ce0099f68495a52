"""Every error of the gateway in one shape: {"error": {"code", "message", "hint"}}."""

import json
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from mezzotint.sampling.request import RequestError
from mezzotint.worker.errors import (
    DatabaseUnavailable,
    IdempotencyConflict,
    JobNotFound,
    MediaNotFound,
    NoRoom,
    NotRetryable,
)

logger = logging.getLogger(__name__)

MAX_MESSAGE_CHARACTERS = 500
SCHEMA_HINT = "/openapi.json describes what each route takes."


class Problem(Exception):
    """An answer that is an error. `message` is one sentence, `hint` what to do when the sentence does not say it."""

    def __init__(
        self, status: int, code: str, message: str, *, hint: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.hint = status, code, message, hint
        self.headers = dict(headers or {})

    def shown(self) -> dict[str, dict[str, str | None]]:
        """What a caller gets. What it sent may be quoted in it, so it is cut short and kept to one printable line."""
        return {"error": {"code": self.code, "message": _one_line(self.message), "hint": self.hint}}

    def body(self) -> bytes:
        """The same as JSON."""
        return json.dumps(self.shown()).encode()

    def response(self) -> Response:
        """As an answer."""
        return Response(self.body(), self.status, self.headers, media_type="application/json")


def _one_line(text: str) -> str:
    plain = "".join(c if c.isprintable() else " " for c in text.encode("utf-8", "replace").decode())
    return plain if len(plain) <= MAX_MESSAGE_CHARACTERS else plain[: MAX_MESSAGE_CHARACTERS - 3] + "..."


def install(app: FastAPI) -> None:
    """Have every exception that a route can raise answered in this shape."""
    kinds: tuple[type[Exception], ...] = (
        Problem, *_KNOWN, RequestValidationError, HTTPException, SQLAlchemyError, Exception
    )
    for kind in kinds:
        app.add_exception_handler(kind, _answer)


async def _answer(request: Request, error: Exception) -> Response:
    problem = problem_of(error, request.method)
    if problem.status == 503:
        logger.error("%s (%s)", problem.message, str(error).splitlines()[0])
    return problem.response()


def problem_of(error: Exception, method: str = "GET") -> Problem:
    """What is answered when a route raised `error`."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, NoRoom):
        return Problem(429, "no_room", str(error), headers=retry_after(error.retry_after_s))
    if isinstance(error, RequestValidationError):
        return _of_validation(error)
    if isinstance(error, HTTPException):
        return _of_routing(error, method)
    for kind, (status, code) in _KNOWN.items():
        if isinstance(error, kind):
            return Problem(status, code, str(error))
    if isinstance(error, SQLAlchemyError):
        return Problem(503, "unavailable", "the job table does not answer; try again later.")
    return Problem(500, "internal", "the gateway failed unexpectedly; its log has the reason.")


_KNOWN: dict[type[Exception], tuple[int, str]] = {
    RequestError: (400, "invalid_request"),
    JobNotFound: (404, "not_found"),
    MediaNotFound: (404, "not_found"),
    IdempotencyConflict: (409, "idempotency_conflict"),
    NotRetryable: (409, "not_retryable"),
    DatabaseUnavailable: (503, "unavailable"),
    NoRoom: (429, "no_room"),
}


def retry_after(seconds: float) -> dict[str, str]:
    """The header that says when to come again."""
    return {"Retry-After": str(max(1, round(seconds)))}


def _of_routing(error: HTTPException, method: str) -> Problem:
    headers = dict(error.headers or {})
    if error.status_code == 404:
        return Problem(404, "not_found", "there is nothing at this address.", hint=SCHEMA_HINT)
    if error.status_code == 405:
        allowed = headers.get("Allow", "another method")
        return Problem(405, "method_not_allowed", f"{method} is not for this address; use {allowed}.", headers=headers)
    return Problem(error.status_code, "invalid_request", str(error.detail), headers=headers)


def _of_validation(error: RequestValidationError) -> Problem:
    """A path that cannot be an id leads nowhere; another parameter is told with its value."""
    first: Mapping[str, Any] = error.errors()[0]
    where, field = str(first["loc"][0]), str(first["loc"][-1])
    if where == "path":
        return Problem(404, "not_found", f"there is nothing with the {field} {str(first['input'])[:60]!r}.")
    reason = str(first["msg"]).replace("Input should", "it should").replace("String should", "it should")
    return Problem(400, "invalid_request", f"{field} is {str(first['input'])[:60]!r}; {reason}.", hint=SCHEMA_HINT)
