"""What a person sees of a job. Frozen, and JSON by `model_dump(mode="json")`. No torch here."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Row

from mezzotint.worker.events import Event

State = Literal["queued", "running", "succeeded", "failed", "cancelled", "dead"]
FINAL_STATES: frozenset[str] = frozenset(("succeeded", "failed", "cancelled", "dead"))


class JobError(BaseModel):
    """Why a job did not succeed: a code to branch on ("memory", "request", "internal", "worker_lost",
    "storage") and one sentence."""

    model_config = ConfigDict(frozen=True)

    code: str
    message: str


class Output(BaseModel):
    """One finished picture. `media_id` is what `Client.media` takes; `bytes` is the size of the file."""

    model_config = ConfigDict(frozen=True)

    media_id: str
    sha256: str
    width: int
    height: int
    seed: int
    bytes: int


class JobView(BaseModel):
    """One job as it stands. `request` is complete: no field is left to a default.

    step of num_steps denoising steps are done; `phase` is "load", "sample" or "decode" while it runs;
    `eta_s` is the seconds left as far as known; `place` is 1 for the next job to start, None when it does
    not wait. `seconds` and `flops` are what the work took, known once it succeeded.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    owner: str
    state: State
    attempt: int
    request: dict[str, Any]
    step: int = 0
    num_steps: int
    phase: str | None = None
    eta_s: float | None = None
    place: int | None = None
    cancel_requested: bool = False
    error: JobError | None = None
    outputs: list[Output] = []
    seconds: dict[str, float] = {}
    flops: int | None = None
    model: str
    device: str | None = None
    dtype: str | None = None
    warnings: list[str] = []
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def is_final(self) -> bool:
        """True once the state can change no more."""
        return self.state in FINAL_STATES

    @property
    def mark(self) -> tuple[object, ...]:
        """Changes with everything about the job but its progress."""
        return self.state, self.attempt, self.place, self.cancel_requested


class JobPage(BaseModel):
    """Some jobs, newest first; pass `next_cursor` to `Client.list` for older ones, None at the end."""

    model_config = ConfigDict(frozen=True)

    jobs: list[JobView]
    next_cursor: str | None = None


def view(row: Row[Any], outputs: Sequence[Row[Any]], event: Event | None, place: int | None) -> JobView:
    """A job's row with what is known besides: its pictures, its latest progress, its place in the queue."""
    result = row.result or {}
    return JobView(
        id=row.id,
        owner=row.owner,
        state=row.state,
        attempt=row.attempt,
        request=row.request,
        **_progress(row, event),
        place=place,
        cancel_requested=row.cancel_requested,
        error=JobError(code=row.error_code, message=row.error_message) if row.error_code else None,
        outputs=[_output(output) for output in outputs],
        seconds=result.get("seconds", {}),
        flops=result.get("flops"),
        model=row.request["model"],
        device=result.get("device"),
        dtype=result.get("dtype"),
        warnings=result.get("warnings", []),
        created_at=as_time(row.created_at),
        started_at=as_time(row.started_at) if row.started_at else None,
        finished_at=as_time(row.finished_at) if row.finished_at else None,
    )


def _progress(row: Row[Any], event: Event | None) -> dict[str, Any]:
    num_steps = row.request["num_inference_steps"]
    if row.state == "succeeded":
        return {"step": num_steps, "num_steps": num_steps}
    # An event of an earlier attempt tells nothing about this one.
    if event is None or event.attempt != row.attempt or row.state == "queued":
        return {"step": 0, "num_steps": num_steps}
    known = {"step": event.step, "num_steps": event.num_steps}
    return known | {"phase": event.phase, "eta_s": event.eta_s} if row.state == "running" else known


def _output(row: Row[Any]) -> Output:
    return Output(
        media_id=row.id, sha256=row.sha256, width=row.width, height=row.height, seed=row.seed,
        bytes=row.size_bytes,
    )


def as_time(seconds: float) -> datetime:
    """A time of the tables, in UTC."""
    return datetime.fromtimestamp(seconds, UTC)
