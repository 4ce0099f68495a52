"""OpenAI's events of an image that is being drawn: a few partial images, then each picture."""

import base64
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi.concurrency import run_in_threadpool

from mezzotint.worker.api.answers import ImagesAnswer
from mezzotint.worker.api.problems import Problem, problem_of
from mezzotint.worker.api.streams import frame
from mezzotint.worker.api.waiting import Wait, succeeded
from mezzotint.worker.views import JobView

PARTIAL, COMPLETED = "image_generation.partial_image", "image_generation.completed"


async def image_frames(
    wait: Wait, num_partial: int, answer: Callable[[JobView], ImagesAnswer]
) -> AsyncIterator[bytes]:
    """At most `num_partial` previews (JPEG) spread over the steps, fewer when the drawing is faster, then a frame for
    each picture; or one "error" frame. A caller who leaves before the end ends the job."""
    previews, left = _Previews(wait, num_partial), True
    try:
        last = wait.job
        async for job in wait.looks():
            picture = await previews.due(job)
            if picture is not None:
                yield _frame(PARTIAL, _partial(job, picture, previews.num_shown - 1))
            last = job
        answered = await run_in_threadpool(answer, succeeded(last))
        for each in answered.data:
            data = answered.model_dump(include={"size", "background", "output_format", "quality", "job_id"})
            yield _frame(COMPLETED, data | each.model_dump(exclude_none=True) | {"created_at": answered.created})
        left = False
    except Problem as problem:
        left = False
        yield frame("error", problem.shown())
    except Exception as error:
        left = False
        yield frame("error", problem_of(error).shown())
        raise
    finally:
        if left:  # the frames were not taken to their end
            wait.leave()


class _Previews:
    """The previews that are still to be shown."""

    def __init__(self, wait: Wait, count: int) -> None:
        self._wait, self._count, self._last = wait, count, b""
        self.num_shown = 0

    async def due(self, job: JobView) -> bytes | None:
        """A new preview, when enough steps are done for the next one."""
        wanted = (self.num_shown + 1) / (self._count + 1)
        if self.num_shown == self._count or job.state != "running" or job.step < wanted * job.num_steps:
            return None
        client = self._wait.service.client
        preview = await run_in_threadpool(client.preview, job.id, owner=self._wait.owner)
        if preview is None or preview == self._last:
            return None
        self._last, self.num_shown = preview, self.num_shown + 1
        return preview


def _partial(job: JobView, picture: bytes, index: int) -> dict[str, Any]:
    return {
        "b64_json": base64.b64encode(picture).decode(),
        "partial_image_index": index,
        "created_at": int(time.time()),
        "size": f"{job.request['width']}x{job.request['height']}",
        "background": "opaque",
        "output_format": "jpeg",
        "quality": "auto",
        "job_id": job.id,
    }


def _frame(kind: str, data: dict[str, Any]) -> bytes:
    return frame(kind, data | {"type": kind})
