"""GET /v1/jobs/{id}/events: a job's progress as server-sent events, from any point on."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from mezzotint.worker.api.answers import job_answer
from mezzotint.worker.api.callers import Caller
from mezzotint.worker.api.jobs import JobId
from mezzotint.worker.api.service import Service, Shared
from mezzotint.worker.api.streams import KEEP_ALIVE, KEEP_ALIVE_S, EventStream, frame, look_again_s
from mezzotint.worker.errors import JobNotFound

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

START, END = "0", "end"
_EVENT_ID = "^(0|end|[0-9]{1,20}-[0-9]{1,20})$"
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
    204: {"description": "The caller has seen the end; browsers stop asking then."},
}


@router.get("/{job_id}/events", response_class=Response, responses=_ANSWERS)
async def events(
    job_id: JobId, request: Request, caller: Caller, service: Shared,
    last_event_id: Annotated[str | None, Header(pattern=_EVENT_ID, description="Go on after this event.")] = None,
    after: Annotated[str, Query(pattern=_EVENT_ID, description="The same, for those who cannot set a header.")] = START,
) -> Response:
    """Follow a job. "progress" events have ids and are replayed; "job" events are the whole job at that moment, sent
    at first and whenever anything but its progress changed. The last one has the id "end"."""
    request.state.job_id = job_id
    await run_in_threadpool(service.client.get, job_id, owner=caller.owner)
    seen = last_event_id or after
    if seen == END:
        return Response(status_code=204)
    return EventStream(service, caller.owner, _follow(service, job_id, caller.owner, seen))


async def _follow(service: Service, job_id: str, owner: str, after: str) -> AsyncIterator[bytes]:
    shown, spoke = None, time.monotonic()
    while not service.stopping.is_set():
        try:
            job, news = await run_in_threadpool(service.client.changes, job_id, owner=owner, after=after)
        except JobNotFound:
            return  # retention took it
        frames = [frame("progress", asdict(event), event_id) for event_id, event in news]
        after = news[-1][0] if news else after
        if job.mark != shown:
            shown = job.mark
            frames.append(frame("job", job_answer(job).model_dump(mode="json"), END if job.is_final else None))
        if not frames and time.monotonic() - spoke > KEEP_ALIVE_S:
            frames = [KEEP_ALIVE]
        for each in frames:
            yield each
            spoke = time.monotonic()
        if job.is_final:
            return
        await asyncio.sleep(look_again_s(job))
