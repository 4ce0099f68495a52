"""Waiting for a job while its caller waits for the answer."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from mezzotint.worker.api.problems import Problem
from mezzotint.worker.api.service import Service
from mezzotint.worker.api.streams import look_again_s
from mezzotint.worker.views import JobView

FIRST_LOOK_S = 0.02
_STATUS = {"request": 400, "memory": 422}
NO_RETRY = {"x-should-retry": "false"}
"""OpenAI's clients would otherwise draw a picture that cannot be drawn three times."""


class CallerLeft(Exception):
    """Nobody is there to read an answer."""


@dataclass(frozen=True, kw_only=True)
class Wait:
    """One caller's wait for one job; `leave_running` when the job outlives its caller's patience."""

    service: Service
    owner: str
    job: JobView
    leave_running: bool

    async def until_done(self, request: Request) -> JobView:
        """The job once it succeeded. Raises Problem when it did not, or not in time, and CallerLeft."""
        job = self.job
        async for seen in self.looks():
            job = seen
            if await request.is_disconnected():
                self.leave()
                raise CallerLeft
        return succeeded(job)

    async def looks(self) -> AsyncIterator[JobView]:
        """The job, now and then, until it is final. Raises Problem when the wait takes too long or the gateway
        stops; the job goes on then."""
        until, pause_s, job = time.monotonic() + self.service.settings.http_wait_s, FIRST_LOOK_S, self.job
        yield job
        while not job.is_final:
            if self.service.stopping.is_set():
                raise _goes_on(503, "stopping", "the gateway stops", job)
            if time.monotonic() > until:
                limit_s = self.service.settings.http_wait_s
                raise _goes_on(504, "timeout", f"there is no picture after {limit_s:g} s", job)
            await asyncio.sleep(pause_s)
            pause_s = min(look_again_s(job), pause_s * 1.3)
            job = await run_in_threadpool(self.service.client.get, job.id, owner=self.owner)
            yield job

    def leave(self) -> None:
        """Cancel the job of a caller who has gone, without waiting for it: this may be called while the caller's
        task is being cancelled itself."""
        if not self.leave_running and not self.service.stopping.is_set():
            asyncio.get_running_loop().run_in_executor(
                None, lambda: self.service.client.cancel(self.job.id, owner=self.owner)
            )


def succeeded(job: JobView) -> JobView:
    """The job itself. Raises Problem when it ended without a picture."""
    if job.state == "succeeded":
        return job
    again = f"POST /v1/jobs/{job.id}/retry tries once more."
    if job.state == "cancelled":
        raise Problem(409, "cancelled", f"job {job.id} was cancelled.", hint=again, headers=NO_RETRY)
    assert job.error is not None, "a job that failed says why"
    raise Problem(
        _STATUS.get(job.error.code, 500), job.error.code, job.error.message, hint=again, headers=NO_RETRY
    )


def _goes_on(status: int, code: str, what: str, job: JobView) -> Problem:
    hint = f"GET /v1/jobs/{job.id} shows it."
    return Problem(status, code, f"{what}, and job {job.id} goes on.", hint=hint, headers=NO_RETRY)
