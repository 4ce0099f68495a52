"""What routes answer: jobs as their owners see them, with an address for each picture."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from mezzotint.worker.views import JobPage, JobView, Output


class PictureAnswer(Output):
    """One finished picture; `url` is where GET brings its file, under this gateway's address."""

    url: str


class JobAnswer(JobView):
    """One job as it stands."""

    outputs: list[PictureAnswer]  # type: ignore[assignment]


class PageAnswer(BaseModel):
    """Some jobs, newest first; `next_cursor` brings older ones, null at the end."""

    jobs: list[JobAnswer]
    next_cursor: str | None


class ErrorAnswer(BaseModel):
    """Why not. `code` is for programs, `message` one sentence, `hint` what else may help."""

    error: "ErrorBody"


class ErrorBody(BaseModel):
    """The inside of an error."""

    code: str
    message: str
    hint: str | None = Field(description="What else may help.")


class ImageAnswer(BaseModel):
    """One picture: its PNG file in base64, or where GET brings it."""

    b64_json: str | None = None
    url: str | None = None
    seed: int


class ImagesAnswer(BaseModel):
    """What OpenAI's clients expect, and the job that drew it."""

    created: int
    data: list[ImageAnswer]
    size: str
    background: Literal["opaque"] = "opaque"
    output_format: Literal["png"] = "png"
    quality: Literal["auto"] = "auto"
    job_id: str


def media_path(media_id: str) -> str:
    """Where a picture's file is, below this gateway's address."""
    return f"/media/{media_id}"


def job_answer(job: JobView) -> JobAnswer:
    """A job with the addresses of its pictures."""
    shown: dict[str, Any] = job.model_dump()
    shown["outputs"] = [output | {"url": media_path(output["media_id"])} for output in shown["outputs"]]
    return JobAnswer.model_validate(shown)


def page_answer(page: JobPage) -> PageAnswer:
    """A page of jobs with the addresses of their pictures."""
    return PageAnswer(jobs=[job_answer(job) for job in page.jobs], next_cursor=page.next_cursor)
