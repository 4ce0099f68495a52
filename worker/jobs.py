"""Jobs in the table as their owners see them: submit, find, list, cancel. Attempts are in attempts.py.

Every change is one compare-and-set on (state, attempt), so two hands at one job cannot both succeed.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, case, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from mezzotint.worker.database import Database, now
from mezzotint.worker.errors import IdempotencyConflict, JobNotFound, NoRoom
from mezzotint.worker.quotas import Quota, check_queue, spend
from mezzotint.worker.schema import jobs, media

MAX_PAGE = 200
MAX_KEY_CHARACTERS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class NewJob:
    """An accepted request on its way into the table. `request` is complete; `request_hash` is of what
    was sent, before defaults were filled in, so that the same body sent twice hashes the same. `max_queued` and
    `quota` say when there is no room for it; None is no limit."""

    owner: str
    request: dict[str, Any]
    request_hash: str
    flops: int
    queue: str
    idempotency_key: str | None = None
    max_queued: int | None = None
    quota: Quota | None = None


def submit(database: Database, job: NewJob) -> tuple[Row[Any], bool]:
    """Write a job's row; the row, and whether it is new (an idempotency key may find an older one).

    Raises IdempotencyConflict when the key came with another request before, ValueError for a bad key, and NoRoom.
    """
    _check_key(job.idempotency_key)
    values = {
        "id": uuid.uuid4().hex,
        "owner": job.owner,
        "queue": job.queue,
        "state": "queued",
        "idempotency_key": job.idempotency_key,
        "request": job.request,
        "request_hash": job.request_hash,
        "flops": job.flops,
        "created_at": now(),
        # As if the message were sent, which comes next; should it not be, the reconciler sends it.
        "published_at": now(),
    }
    try:
        with database.writing() as connection:
            _make_room(connection, job)
            return connection.execute(insert(jobs).values(values).returning(*jobs.c)).one(), True
    except (IntegrityError, NoRoom):
        # A repeat of an accepted job takes no room.
        row = _same_job(database, job)
        if row is None:
            raise
    return row, False


def _make_room(connection: Connection, job: NewJob) -> None:
    if job.max_queued is not None:
        check_queue(connection, job.max_queued)
    if job.quota is not None:
        spend(connection, job.owner, job.quota)


def _check_key(key: str | None) -> None:
    if key is not None and not (isinstance(key, str) and 1 <= len(key) <= MAX_KEY_CHARACTERS):
        raise ValueError(f"idempotency_key is {key!r}; give text of 1 to {MAX_KEY_CHARACTERS} characters.")


def _same_job(database: Database, job: NewJob) -> Row[Any] | None:
    if job.idempotency_key is None:
        return None
    owned = and_(jobs.c.owner == job.owner, jobs.c.idempotency_key == job.idempotency_key)
    with database.reading() as connection:
        row = connection.execute(select(jobs).where(owned)).one_or_none()
    if row is not None and row.request_hash != job.request_hash:
        raise IdempotencyConflict(
            f"idempotency_key {job.idempotency_key!r} was used for another request (job {row.id}); "
            "send a new key with a new request."
        )
    return row


def find(database: Database, job_id: str, owner: str) -> Row[Any]:
    """The row of an owner's job. Raises JobNotFound."""
    with database.reading() as connection:
        row = connection.execute(select(jobs).where(_owned(job_id, owner))).one_or_none()
    if row is None:
        raise JobNotFound(f"there is no job {job_id!r}; list the jobs to see which there are.")
    return row


def _owned(job_id: str, owner: str) -> ColumnElement[bool]:
    return and_(jobs.c.id == job_id, jobs.c.owner == owner)


def page(
    database: Database, owner: str, limit: int, cursor: str | None, state: str | None = None
) -> tuple[Sequence[Row[Any]], str | None]:
    """Up to `limit` rows of an owner, newest first, and the cursor of the next page or None; `state` picks those
    in one state.

    Raises ValueError with one sentence for a limit outside 1 to 200 or a cursor that is not ours.
    """
    if not 1 <= limit <= MAX_PAGE:
        raise ValueError(f"limit is {limit}; it must be from 1 to {MAX_PAGE}.")
    query = select(jobs).where(jobs.c.owner == owner)
    if cursor is not None:
        query = query.where(jobs.c.number < _read_cursor(cursor))
    if state is not None:
        query = query.where(jobs.c.state == state)
    with database.reading() as connection:
        rows = connection.execute(query.order_by(jobs.c.number.desc()).limit(limit + 1)).all()
    return rows[:limit], str(rows[limit - 1].number) if len(rows) > limit else None


def _read_cursor(cursor: str) -> int:
    if not (cursor.isascii() and cursor.isdecimal() and len(cursor) < 19):
        raise ValueError(f"cursor is {cursor!r}; use the next_cursor of the page before it.")
    return int(cursor)


def cancel(database: Database, job_id: str, owner: str) -> Row[Any]:
    """End a waiting job at once, ask a running one to stop, leave an ended one as it is.

    A running job that was asked to stop can no longer succeed. Raises JobNotFound.
    """
    waits = jobs.c.state == "queued"
    values = {
        "cancel_requested": True,
        "state": case((waits, "cancelled"), else_=jobs.c.state),
        "finished_at": case((waits, now()), else_=None),
    }
    active = and_(_owned(job_id, owner), jobs.c.state.in_(("queued", "running")))
    with database.writing() as connection:
        connection.execute(update(jobs).where(active).values(values))
    return find(database, job_id, owner)


def mark_published(database: Database, job_id: str, attempt: int, published: bool) -> None:
    """Note whether a message for this attempt was sent; the reconciler sends those that were not."""
    waiting = and_(jobs.c.id == job_id, jobs.c.state == "queued", jobs.c.attempt == attempt)
    with database.writing() as connection:
        connection.execute(update(jobs).where(waiting).values(published_at=now() if published else None))


def outputs(database: Database, job_ids: Sequence[str]) -> dict[str, list[Row[Any]]]:
    """The finished pictures of each job, in order."""
    found: dict[str, list[Row[Any]]] = {job_id: [] for job_id in job_ids}
    query = select(media).where(media.c.job_id.in_(job_ids), media.c.kept).order_by(media.c.position)
    with database.reading() as connection:
        for row in connection.execute(query):
            found[row.job_id].append(row)
    return found


def places(database: Database, rows: Sequence[Row[Any]]) -> dict[str, int]:
    """The place of each waiting job in its queue; 1 starts next."""
    waiting = [row.id for row in rows if row.state == "queued"]
    if not waiting:
        return {}
    in_order = func.row_number().over(partition_by=jobs.c.queue, order_by=jobs.c.number)
    ranked = select(jobs.c.id, in_order.label("place")).where(jobs.c.state == "queued").subquery()
    with database.reading() as connection:
        found = connection.execute(select(ranked).where(ranked.c.id.in_(waiting)))
        return {row.id: row.place for row in found}
