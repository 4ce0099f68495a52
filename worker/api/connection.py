"""HTTP connections that do not wait forever: for headers that do not come, or for answers that nobody reads."""

import asyncio
import time
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from mezzotint.worker.api.problems import Problem

HEADERS_S = 15.0
"""How long a request's line and headers may take."""
UNREAD_S = 30.0
MIN_READ_BYTES = 30 * 1024
"""A caller must take this much of an answer, or all of it, in UNREAD_S."""
LOOK_EVERY_S = 1.0


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with deadlines, and with its own errors in the gateway's shape."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._headers_until: float | None = None
        self._unread, self._unread_until = 0, 0.0
        self._watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A caller who connects and says nothing is sent away, too."""
        super().connection_made(transport)
        self._headers_until = time.monotonic() + HEADERS_S
        self._watch = self.loop.call_later(LOOK_EVERY_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop watching."""
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """The clock runs from a request's first byte to the end of its headers."""
        if self._headers_until is None and self.conn.their_state is h11.IDLE:
            self._headers_until = time.monotonic() + HEADERS_S
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._headers_until = None

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is not HTTP, in the gateway's shape."""
        self._refuse(Problem(400, "invalid_http", "the request is not HTTP/1.1 as it should be; see RFC 9112."))

    def _look(self) -> None:
        now = time.monotonic()
        if self._headers_until is not None and now > self._headers_until:
            self._headers_until = None
            self._refuse(Problem(408, "timeout", f"the headers did not arrive within {HEADERS_S:.0f} s."))
        unread = self.transport.get_write_buffer_size()
        if unread == 0 or unread <= self._unread - MIN_READ_BYTES or self._unread == 0:
            self._unread, self._unread_until = unread, now + UNREAD_S
        elif now > self._unread_until:
            self.transport.abort()
            return
        self._watch = self.loop.call_later(LOOK_EVERY_S, self._look)

    def _refuse(self, problem: Problem) -> None:
        """Answer below the application and close."""
        body = problem.body()
        head = (
            f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            "X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
        )
        answered = self.cycle is None or self.cycle.response_complete
        if answered and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(head.encode() + body)
        self.transport.close()
