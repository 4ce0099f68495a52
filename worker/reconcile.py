"""Puts right what faults left behind: jobs whose worker vanished, messages that got lost, files of no one.

Every worker runs it in a thread; a lock in the database lets one at a time do the work.
"""

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlalchemy import Connection, Row, and_, func, or_, select, update

from mezzotint.worker import gallery, jobs
from mezzotint.worker.attempts import WAITING
from mezzotint.worker.database import Database, now
from mezzotint.worker.events import Events
from mezzotint.worker.publisher import Publisher
from mezzotint.worker.retention import Retention
from mezzotint.worker.schema import jobs as table
from mezzotint.worker.schema import locks
from mezzotint.worker.settings import Settings
from mezzotint.worker.storage import Storage

logger = logging.getLogger(__name__)

MAX_PUBLISHED_A_ROUND = 500


@dataclass(frozen=True, kw_only=True)
class Reconciler:
    """Holds what a round needs; `name` tells holders of the lock apart."""

    database: Database
    storage: Storage
    publisher: Publisher
    settings: Settings
    name: str

    def round(self) -> bool:
        """Do one round if no other reconciler is at it; True when this one did.

        Raises what the database or the storage raises; a round may be cut off anywhere and begun again.
        """
        if not self._is_mine():
            return False
        self._end_lost_attempts()
        for queue in self._waiting_queues():
            self._publish(queue)
        gallery.sweep(self.database, self.storage)
        self._retention.round()
        return True

    @cached_property
    def _retention(self) -> Retention:
        return Retention(self.database, self.storage, self.settings)

    @cached_property
    def _events(self) -> Events:
        return Events(self.settings)

    def _is_mine(self) -> bool:
        """Take or keep the lock. A holder that dies is followed after a few rounds."""
        free = or_(locks.c.holder == self.name, locks.c.until < now())
        mine = update(locks).where(locks.c.name == "reconcile", free)
        mine = mine.values(holder=self.name, until=now() + 3 * self.settings.reconcile_s)
        with self.database.writing() as connection:
            return connection.execute(mine).rowcount == 1

    def _end_lost_attempts(self) -> None:
        expired = and_(table.c.state == "running", table.c.lease_until < now())
        with self.database.reading() as connection:
            rows = connection.execute(select(table).where(expired)).all()
        for row in rows:
            with self.database.writing() as connection:
                ended = _end_lost(connection, row, self.settings.max_attempts)
            if ended is not None:
                final = {} if ended == "queued" else {f"ended:{ended}": 1}
                self._events.count({"attempts": 1, "attempts_lost": 1} | final)

    def _waiting_queues(self) -> list[str]:
        with self.database.reading() as connection:
            found = select(table.c.queue).where(table.c.state == "queued").distinct()
            return list(connection.execute(found).scalars())

    def _publish(self, queue: str) -> None:
        """Send again the messages that are lost for certain, and send those that never were."""
        for row in self._unpublished(queue, self.publisher.depth(queue)):
            if not self.publisher.publish(row.id, row.attempt, row.queue):
                return
            jobs.mark_published(self.database, row.id, row.attempt, True)

    def _unpublished(self, queue: str, depth: int | None) -> list[Row[Any]]:
        """Waiting jobs that no message stands for, oldest first.

        A message is lost when its queue is empty, or when a later one was taken before it; each has some
        seconds of grace on its way.
        """
        if depth is None:
            return []
        delivered = select(func.max(table.c.published_at)).where(table.c.queue == queue, table.c.attempt > 0)
        overtaken = table.c.published_at < delivered.scalar_subquery()
        lost = overtaken if depth else table.c.published_at.is_not(None)
        overdue = and_(lost, table.c.published_at < now() - self.settings.republish_s)
        unsent = table.c.published_at.is_(None)
        query = select(table).where(table.c.queue == queue, table.c.state == "queued", or_(unsent, overdue))
        query = query.order_by(table.c.number).limit(MAX_PUBLISHED_A_ROUND)
        with self.database.reading() as connection:
            return list(connection.execute(query).all())


def _end_lost(connection: Connection, row: Row[Any], max_attempts: int) -> str | None:
    """The worker of this attempt has vanished: cancelled if that was asked, else another attempt or dead.

    The new state, or None when someone else was faster.
    """
    num_lost = row.num_lost + 1
    values: dict[str, Any] = {"num_lost": num_lost}
    if row.cancel_requested:
        values |= {"state": "cancelled", "finished_at": now(), "lease_until": None}
    elif num_lost >= max_attempts:
        message = (
            f"the worker process ended {num_lost} times while drawing this job, the last time on "
            f"{row.worker}; it is not tried again. Its log has the reason; a smaller size may help."
        )
        values |= {"state": "dead", "finished_at": now(), "lease_until": None}
        values |= {"error_code": "worker_lost", "error_message": message}
    else:
        values |= WAITING
    still_lost = and_(
        table.c.id == row.id,
        table.c.state == "running",
        table.c.attempt == row.attempt,
        table.c.cancel_requested == row.cancel_requested,
        table.c.lease_until < now(),
    )
    if connection.execute(update(table).where(still_lost).values(values)).rowcount == 0:
        return None
    state = str(values["state"])
    logger.warning("job %s lost its worker %s: now %s", row.id, row.worker, state, extra={"job_id": row.id})
    return state
