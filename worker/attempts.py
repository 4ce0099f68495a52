"""One attempt at a job, as the worker that runs it sees it.

An attempt holds a lease. Whatever it writes is fenced by (state = running, attempt = its own): once the
lease was taken away, nothing of it can reach the job any more.
"""

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, and_, select, update

from mezzotint.worker.database import Database, now
from mezzotint.worker.schema import jobs, media

Order = Literal["draw", "cancel", "hand_back", "lost"]

WAITING = {"state": "queued", "lease_until": None, "hand_back_at": None, "worker": None, "published_at": None}
"""What a running job becomes when another attempt is to begin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A worker's hold on one attempt."""

    job_id: str
    owner: str
    attempt: int
    request: dict[str, Any]
    queued_s: float


def claim(database: Database, job_id: str, attempt: int, *, worker: str, lease_s: float) -> Claim | None:
    """Begin the attempt after `attempt` begun ones, or None when someone was faster or it is not wanted."""
    waiting = and_(jobs.c.id == job_id, jobs.c.state == "queued", jobs.c.attempt == attempt)
    values = {
        "state": "running",
        "attempt": attempt + 1,
        "worker": worker,
        "lease_until": now() + lease_s,
        "hand_back_at": None,
        "started_at": now(),
    }
    statement = update(jobs).where(waiting).values(values).returning(*jobs.c)
    with database.writing() as connection:
        row = connection.execute(statement).one_or_none()
    if row is None:
        return None
    return Claim(
        job_id=row.id,
        owner=row.owner,
        attempt=row.attempt,
        request=row.request,
        queued_s=row.started_at - row.created_at,
    )


def _held(claim: Claim) -> ColumnElement[bool]:
    return and_(jobs.c.id == claim.job_id, jobs.c.state == "running", jobs.c.attempt == claim.attempt)


def _change(database: Database, where: ColumnElement[bool], values: dict[str, Any]) -> bool:
    with database.writing() as connection:
        return connection.execute(update(jobs).where(where).values(values)).rowcount == 1


def renew(database: Database, claim: Claim, lease_s: float) -> bool:
    """Hold on for another `lease_s` seconds; False when the lease is lost."""
    return _change(database, _held(claim), {"lease_until": now() + lease_s})


def order(database: Database, claim: Claim) -> Order:
    """What the attempt is to do next; asked before every denoising step."""
    query = select(jobs.c.cancel_requested, jobs.c.hand_back_at < now()).where(_held(claim))
    with database.reading() as connection:
        row = connection.execute(query).one_or_none()
    if row is None:
        return "lost"
    cancel_requested, hand_back = row
    return "cancel" if cancel_requested else "hand_back" if hand_back else "draw"


def commit(database: Database, claim: Claim, result: dict[str, Any]) -> bool:
    """Make the announced media the job's result; False when the lease is lost or a stop was asked for."""
    with database.writing() as connection:
        wanted = and_(_held(claim), ~jobs.c.cancel_requested)
        values = _ended("succeeded") | {"result": result, "error_code": None, "error_message": None}
        if connection.execute(update(jobs).where(wanted).values(values)).rowcount == 0:
            return False
        announced = and_(media.c.job_id == claim.job_id, media.c.attempt == claim.attempt)
        connection.execute(update(media).where(announced).values(kept=True))
        return True


def fail(database: Database, claim: Claim, code: str, message: str) -> bool:
    """End the job with an error that another attempt would meet again."""
    return _change(database, _held(claim), _ended("failed") | {"error_code": code, "error_message": message})


def end_cancelled(database: Database, claim: Claim) -> bool:
    """End the job as its owner asked."""
    return _change(database, and_(_held(claim), jobs.c.cancel_requested), _ended("cancelled"))


def hand_back(database: Database, claim: Claim) -> bool:
    """Put the job back in its queue because this worker stops; it does not count as lost.

    False when the lease is lost or a stop was asked for.
    """
    wanted = and_(_held(claim), ~jobs.c.cancel_requested)
    return _change(database, wanted, WAITING)


def ask_back(database: Database, worker: str, grace_s: float) -> int:
    """Tell a worker's running attempts to hand back unless they end within `grace_s`; how many there are."""
    running = and_(jobs.c.worker == worker, jobs.c.state == "running")
    with database.writing() as connection:
        return connection.execute(update(jobs).where(running).values(hand_back_at=now() + grace_s)).rowcount


def _ended(state: str) -> dict[str, Any]:
    return {"state": state, "finished_at": now(), "lease_until": None, "hand_back_at": None}
