"""Around every request: who may knock, how long it may take to say what it wants, and one line in the log."""

import asyncio
import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mezzotint.worker.api.numbers import HttpNumbers
from mezzotint.worker.api.problems import Problem, problem_of
from mezzotint.worker.logs import request_id as current_request
from mezzotint.worker.ports import is_loopback

logger = logging.getLogger(__name__)

BODY_S = 30.0
"""How long a whole body may take."""
_ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
)


class Door:
    """The gateway's outermost layer."""

    def __init__(self, app: ASGIApp, numbers: HttpNumbers, *, only_local: bool) -> None:
        """only_local: no token is asked for, so that neither a foreign web site nor a foreign host name may call."""
        self._app, self._numbers, self._only_local = app, numbers, only_local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the application's start and end."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = _Visit(scope, send)
        with visit.logged(self._numbers):
            try:
                if self._only_local:
                    _check_names(scope)
                await self._app(scope, _patient(receive), visit.send)
            except Exception as error:  # noqa: BLE001 - the last resort: it is logged and answered
                await visit.fail(error)


class _Visit:
    """One request on its way."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope, self._send = scope, send
        self._id = uuid.uuid4().hex[:16]
        self._status = 0

    @contextmanager
    def logged(self, numbers: HttpNumbers) -> Iterator[None]:
        began, mark = time.perf_counter(), current_request.set(self._id)
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            route = getattr(self._scope.get("route"), "path", "none")
            numbers.seen(self._scope["method"], route, self._status, seconds)
            state = self._scope.get("state", {})
            known = {name: state[name] for name in ("owner", "job_id") if name in state}
            logger.info(
                "%s %s %d", self._scope["method"], self._scope["path"].encode("unicode_escape").decode()[:200],
                self._status, extra={"seconds": round(seconds, 4), "status": self._status, **known},
            )
            current_request.reset(mark)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = [*message.get("headers", []), *_ALWAYS, (b"x-request-id", self._id.encode())]
            if not any(name == b"cache-control" for name, _ in headers):
                headers.append((b"cache-control", b"no-store"))
            message = {**message, "headers": headers}
        await self._send(message)

    async def fail(self, error: Exception) -> None:
        """Answer what no route answered; one that began to answer is cut off."""
        problem = problem_of(error)
        if problem.status >= 500:
            logger.error("%s failed", self._scope["path"].encode("unicode_escape").decode()[:200], exc_info=error)
        if self._status == 0:
            await problem.response()(self._scope, _nothing, self.send)


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


def _patient(receive: Receive) -> Receive:
    """`receive` that gives up on a body that does not come; the wait for a caller's leave is not limited."""
    until, done = time.monotonic() + BODY_S, False

    async def receive_in_time() -> Message:
        nonlocal done
        if done:
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, until - time.monotonic()))
        except TimeoutError:
            raise Problem(
                408, "timeout", f"the body did not arrive within {BODY_S:.0f} s; send it faster.",
                headers={"Connection": "close"},
            ) from None
        done = not message.get("more_body", False)
        return message

    return receive_in_time


def _check_names(scope: Scope) -> None:
    """Raises Problem 403 for names that only a rebound DNS entry or a page of another site would bring."""
    headers = dict(scope["headers"])
    host = headers.get(b"host", b"").decode("latin-1")
    if not is_loopback(_hostname(f"//{host}")):
        raise Problem(
            403, "forbidden", f"Host is {host!r}; this gateway answers to localhost only.",
            hint="Call it as 127.0.0.1, or start it for others: mezzotint serve --host ADDRESS, with a token.",
        )
    origin = headers.get(b"origin")
    if origin is not None and not is_loopback(_hostname(origin.decode("latin-1"))):
        raise Problem(403, "forbidden", f"Origin is {origin.decode('latin-1')!r}; web sites may not call this gateway.")


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
