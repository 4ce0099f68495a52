"""Room for one more job: in the queue as a whole, and within what a token allows.

Asked inside the transaction that writes the job, so that two submits at once cannot both take the last place.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, case, func, or_, select, true, update

from mezzotint.worker.database import now
from mezzotint.worker.errors import NoRoom
from mezzotint.worker.schema import jobs, tokens
from mezzotint.worker.tokens import Limits, Token

DAY_S = 86_400
QUEUE_RETRY_S, ACTIVE_RETRY_S = 10.0, 5.0
"""When to try again is a guess for these two: a place is free once some job ends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quota:
    """What a token leaves its owner."""

    token_id: str
    limits: Limits


def quota_of(token: Token) -> Quota:
    """What is left to a token's owner."""
    limits = Limits(
        max_active=token.max_active, jobs_per_day=token.jobs_per_day, requests_per_minute=token.requests_per_minute
    )
    return Quota(token_id=token.id, limits=limits)


def check_queue(connection: Connection, max_queued: int) -> None:
    """Raises NoRoom when `max_queued` jobs wait. On Postgres submits at once may overshoot by their number."""
    waiting = connection.execute(select(func.count()).select_from(jobs).where(jobs.c.state == "queued")).scalar_one()
    if waiting >= max_queued:
        raise NoRoom(f"the queue is full ({waiting:,} jobs wait); try again later.", QUEUE_RETRY_S)


def spend(connection: Connection, owner: str, quota: Quota) -> None:
    """Count a job against a token. Raises NoRoom when the token allows no more."""
    # First, since the row it changes stays locked: whoever submits with the same token waits for this transaction.
    _spend_day(connection, quota)
    limit = quota.limits.max_active
    if limit is None:
        return
    active = select(func.count()).where(jobs.c.owner == owner, jobs.c.state.in_(("queued", "running")))
    count = connection.execute(active).scalar_one()
    if count >= limit:
        raise NoRoom(
            f"{count} of your jobs wait or run, and this token allows {limit}; wait for one to end, or cancel one.",
            ACTIVE_RETRY_S,
        )


def _spend_day(connection: Connection, quota: Quota) -> None:
    seconds = connection.execute(select(now())).scalar_one()
    today, limit = int(seconds // DAY_S), quota.limits.jobs_per_day
    counted = case((tokens.c.day == today, tokens.c.jobs_on_day + 1), else_=1)
    free = or_(tokens.c.day != today, tokens.c.jobs_on_day < (limit or 0)) if limit is not None else true()
    spent = update(tokens).where(tokens.c.id == quota.token_id, free).values(day=today, jobs_on_day=counted)
    if connection.execute(spent).rowcount == 0:
        raise NoRoom(
            f"this token allows {limit} jobs a day, and today's are used up; a new day begins at 00:00 UTC.",
            (today + 1) * DAY_S - seconds,
        )
