"""Server-sent events: frames, and answers that stay open."""

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from mezzotint.worker.api.service import Service
from mezzotint.worker.views import JobView

LOOK_EVERY_S, LOOK_AT_WAITING_S = 0.25, 1.0
FAR_BACK = 5
KEEP_ALIVE_S = 15.0
KEEP_ALIVE = b": still here\n\n"


def look_again_s(job: JobView) -> float:
    """How long to leave a job alone: one far back in the queue does not start in the next moment, and to count those
    before it costs more the more there are."""
    return LOOK_AT_WAITING_S if (job.place or 0) > FAR_BACK else LOOK_EVERY_S


def frame(event: str, data: Any, event_id: str | None = None) -> bytes:
    """One event; JSON has no bare line breaks, so that nothing in `data` can begin another one."""
    head = f"id: {event_id}\n" if event_id else ""
    return f"{head}event: {event}\ndata: {json.dumps(data)}\n\n".encode()


class EventStream(StreamingResponse):
    """An answer made of frames, counted among its owner's open ones."""

    media_type = "text/event-stream"

    def __init__(self, service: Service, owner: str, frames: AsyncIterator[bytes]) -> None:
        """Raises Problem 429 when too many are open."""
        service.open_answers.take(owner)
        self._service, self._owner = service, owner
        # Proxies that collect an answer before they pass it on would hold the frames back.
        super().__init__(frames, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the frames until there are no more or the caller leaves."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._service.open_answers.leave(self._owner)
