"""How much there is of everything, for metrics: jobs by state, queues, workers, and totals since the broker began."""

from collections import Counter

from sqlalchemy import func, select

from mezzotint.worker.database import Database, now
from mezzotint.worker.events import Events
from mezzotint.worker.schema import jobs


class Tally:
    """Counts when asked. Safe to share between threads."""

    def __init__(self, database: Database, events: Events) -> None:
        self._database, self._events = database, events

    def states(self) -> dict[str, int]:
        """Number of jobs in the table by state."""
        query = select(jobs.c.state, func.count().label("num")).group_by(jobs.c.state)
        with self._database.reading() as connection:
            return {row.state: row.num for row in connection.execute(query)}

    def queues(self) -> list[tuple[str, int, float]]:
        """Each queue with its waiting jobs and the age of the oldest in seconds."""
        age = now() - func.min(jobs.c.created_at)
        query = select(jobs.c.queue, func.count(), age).where(jobs.c.state == "queued").group_by(jobs.c.queue)
        with self._database.reading() as connection:
            return [(queue, count, float(seconds)) for queue, count, seconds in connection.execute(query)]

    def workers(self) -> dict[str, int]:
        """Number of workers by queue."""
        return dict(Counter(queue for queues in self._events.workers().values() for queue in queues))

    def num_engines(self) -> int | None:
        """Engines that are ready; None when the broker does not answer."""
        return self._events.num_engines()

    def totals(self) -> dict[str, float] | None:
        """What workers counted so far; None when the broker does not answer."""
        return self._events.totals()
