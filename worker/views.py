"""What a person sees of a job. Frozen, and JSON by `model_dump(mode="json")`. No torch here."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

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


class JobPage(BaseModel):
    """Some jobs, newest first; pass `next_cursor` to `Client.list` for older ones, None at the end."""

    model_config = ConfigDict(frozen=True)

    jobs: list[JobView]
    next_cursor: str | None = None
