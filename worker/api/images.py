"""/v1/images: OpenAI's image routes, as far as the engine can do them."""

import base64
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from mezzotint.worker.api.answers import ImageAnswer, ImagesAnswer, media_path
from mezzotint.worker.api.body import JsonObject, drop
from mezzotint.worker.api.callers import Caller, CallerInfo
from mezzotint.worker.api.image_frames import image_frames
from mezzotint.worker.api.jobs import IdempotencyKey
from mezzotint.worker.api.openai_fields import parse_images_request
from mezzotint.worker.api.problems import Problem
from mezzotint.worker.api.schema import IMAGES_REQUEST, body_of
from mezzotint.worker.api.service import Service, Shared
from mezzotint.worker.api.streams import EventStream
from mezzotint.worker.api.waiting import CallerLeft, Wait
from mezzotint.worker.views import JobView, Output

router = APIRouter(prefix="/v1/images", tags=["images"])

CALLER_LEFT = 499
"""For the log alone: nobody reads this answer. The number is nginx's."""
_STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}


@router.post(
    "/generations", response_model=ImagesAnswer, response_model_exclude_none=True, responses=_STREAM,
    openapi_extra=body_of(IMAGES_REQUEST),
)
async def generations(
    request: Request, caller: Caller, service: Shared, body: JsonObject, idempotency_key: IdempotencyKey = None
) -> Response | ImagesAnswer:
    """Draw pictures and wait for them. When the caller leaves, the job is cancelled, unless it has an
    Idempotency-Key and so can be asked for again."""
    asked = parse_images_request(body)
    job = await run_in_threadpool(
        service.client.submit, asked.request, owner=caller.owner, idempotency_key=idempotency_key, quota=caller.quota
    )
    request.state.job_id = job.id
    base = _base(service, request)
    wait = Wait(service=service, owner=caller.owner, job=job, leave_running=idempotency_key is not None)
    if asked.stream:
        answer = partial(_answer, service, caller, as_url=asked.as_url, base=base)
        frames = image_frames(wait, asked.num_partial, answer)
        return EventStream(service, caller.owner, frames)
    try:
        with service.open_answers.place(caller.owner):
            done = await wait.until_done(request)
    except CallerLeft:
        return Response(status_code=CALLER_LEFT)
    return await run_in_threadpool(_answer, service, caller, done, asked.as_url, base)


@router.post("/edits", responses={200: {"description": "Never, for now."}})
@router.post("/variations", responses={200: {"description": "Never, for now."}})
async def from_pictures(request: Request, caller: Caller) -> Response:
    """Refused: no model here draws from a picture yet."""
    await drop(request)
    raise Problem(
        400, "not_supported",
        "the models here draw from text alone, so a picture can be neither edited nor varied; "
        "describe it in a prompt for /v1/images/generations.",
    )


def _base(service: Service, request: Request) -> str:
    return service.settings.public_url.rstrip("/") or f"{request.url.scheme}://{request.url.netloc}"


def _answer(service: Service, caller: CallerInfo, job: JobView, as_url: bool, base: str) -> ImagesAnswer:
    pictures = [_picture(service, caller.owner, output, as_url, base) for output in job.outputs]
    return ImagesAnswer(created=_created(job), data=pictures, size=_size(job), job_id=job.id)


def _picture(service: Service, owner: str, output: Output, as_url: bool, base: str) -> ImageAnswer:
    if as_url:
        return ImageAnswer(url=base + media_path(output.media_id), seed=output.seed)
    return ImageAnswer(b64_json=_base64(service.client.media(output.media_id, owner=owner)), seed=output.seed)


def _created(job: JobView) -> int:
    return int((job.finished_at or job.created_at).timestamp())


def _size(job: JobView) -> str:
    return f"{job.request['width']}x{job.request['height']}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
