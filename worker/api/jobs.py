"""/v1/jobs: submit, list, show, cancel, try again, and the last preview."""

from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request, Response

from mezzotint.worker.api.answers import JobAnswer, PageAnswer, job_answer, page_answer
from mezzotint.worker.api.body import JsonObject
from mezzotint.worker.api.callers import Caller
from mezzotint.worker.api.problems import Problem
from mezzotint.worker.api.schema import JOB_REQUEST, body_of
from mezzotint.worker.api.service import Shared
from mezzotint.worker.api.strict import strict_request
from mezzotint.worker.jobs import MAX_KEY_CHARACTERS, MAX_PAGE
from mezzotint.worker.views import JobView, State

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

JobId = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="The job's id.")]
IdempotencyKey = Annotated[
    str | None,
    Header(
        pattern=f"^[!-~]{{1,{MAX_KEY_CHARACTERS}}}$",
        description="The same key and body are the same job; the same key with another body is refused (409).",
    ),
]
Cursor = Annotated[str | None, Query(pattern="^[0-9]{1,18}$", description="next_cursor of the page before.")]


@router.post("", status_code=201, openapi_extra=body_of(JOB_REQUEST))
def submit(
    request: Request, response: Response, caller: Caller, service: Shared, body: JsonObject,
    idempotency_key: IdempotencyKey = None,
) -> JobAnswer:
    """Submit a job. Once this has answered, the job is not lost."""
    job = service.client.submit(
        strict_request(body), owner=caller.owner, idempotency_key=idempotency_key, quota=caller.quota
    )
    return _made(job, request, response)


@router.get("")
def list_jobs(
    caller: Caller, service: Shared, limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50, cursor: Cursor = None,
    state: Annotated[State | None, Query(description="Only jobs in this state.")] = None,
) -> PageAnswer:
    """List your jobs, newest first."""
    return page_answer(service.client.list(owner=caller.owner, limit=limit, cursor=cursor, state=state))


@router.get("/{job_id}")
def show(job_id: JobId, request: Request, caller: Caller, service: Shared) -> JobAnswer:
    """Show a job as it stands."""
    request.state.job_id = job_id
    return job_answer(service.client.get(job_id, owner=caller.owner))


@router.post("/{job_id}/cancel")
def cancel(job_id: JobId, request: Request, caller: Caller, service: Shared) -> JobAnswer:
    """Stop a job: at once when it waits, within one step when it runs. One that has ended stays as it is."""
    request.state.job_id = job_id
    return job_answer(service.client.cancel(job_id, owner=caller.owner))


@router.post("/{job_id}/retry", status_code=201)
def retry(
    job_id: JobId, request: Request, response: Response, caller: Caller, service: Shared,
    idempotency_key: IdempotencyKey = None,
) -> JobAnswer:
    """Submit a failed, dead or cancelled job's request once more, as a new job."""
    job = service.client.retry(job_id, owner=caller.owner, idempotency_key=idempotency_key, quota=caller.quota)
    return _made(job, request, response)


@router.get("/{job_id}/preview", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
def preview(job_id: JobId, request: Request, caller: Caller, service: Shared) -> Response:
    """Bring the last preview of a running job, as JPEG."""
    request.state.job_id = job_id
    picture = service.client.preview(job_id, owner=caller.owner)
    if picture is None:
        raise Problem(404, "not_found", f"job {job_id} has no preview now; one comes while it runs.")
    return Response(picture, media_type="image/jpeg")


def _made(job: JobView, request: Request, response: Response) -> JobAnswer:
    request.state.job_id = job.id
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job_answer(job)
