"""The one way to the jobs from Python: the page and the command line use it. No torch here."""

import hashlib
import json
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from sqlalchemy import Row

from mezzotint.sampling.intake import accept
from mezzotint.sampling.request import GenerateRequest, RequestError, parse_request
from mezzotint.worker import gallery, jobs
from mezzotint.worker.database import Database
from mezzotint.worker.errors import MediaNotFound
from mezzotint.worker.events import Events
from mezzotint.worker.migrate import migrate
from mezzotint.worker.publisher import Publisher
from mezzotint.worker.queues import DRAWING_QUEUE
from mezzotint.worker.settings import Settings
from mezzotint.worker.storage import Storage, StorageError
from mezzotint.worker.views import JobPage, JobView, view

FIRST_LOOK_S, LAST_LOOK_S = 0.02, 0.25
"""How often `wait` reads the table: at first, and after a while."""


class Client:
    """Submits jobs and reads them back. Safe to share between threads.

    Every read is of the job table, which is the truth; progress is added from the broker when it answers.
    A job of another owner is a JobNotFound.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        """Connect on first use. Raises SettingsError when a MEZZOTINT_* variable cannot be used."""
        self.settings = settings or Settings.load()
        self._events = Events(self.settings)
        self._publisher = Publisher(self.settings)
        self._storage = Storage(self.settings.storage_url)
        self._opening = threading.Lock()

    @cached_property
    def _opened(self) -> Database:
        database = Database(self.settings.database_url)
        migrate(database)
        return database

    @property
    def _database(self) -> Database:
        with self._opening:
            return self._opened

    def submit(
        self,
        request: GenerateRequest | Mapping[str, Any],
        *,
        owner: str = "local",
        idempotency_key: str | None = None,
    ) -> JobView:
        """Check a request, write its job and tell a worker; answers in under a second, broker or not.

        Raises RequestError (nothing is queued), IdempotencyConflict when the owner used the key before for
        another request, and DatabaseUnavailable.
        """
        sent = _parsed(request)
        complete, plan = accept(sent)
        job = jobs.NewJob(
            owner=owner,
            request=complete.model_dump(mode="json"),
            request_hash=_hash(sent),
            flops=plan.flops,
            queue=DRAWING_QUEUE,
            idempotency_key=idempotency_key,
        )
        row, is_new = jobs.submit(self._database, job)
        if is_new and not self._publisher.publish(row.id, row.attempt, row.queue):
            jobs.mark_published(self._database, row.id, row.attempt, False)
        return self._views([row])[0]

    def get(self, job_id: str, *, owner: str = "local") -> JobView:
        """The job as it stands. Raises JobNotFound."""
        return self._views([jobs.find(self._database, job_id, owner)])[0]

    def wait(self, job_id: str, *, owner: str = "local", timeout_s: float | None = None) -> JobView:
        """The job once its state is final. Raises JobNotFound, and TimeoutError after `timeout_s` seconds."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        pause_s = FIRST_LOOK_S
        while not (job := self.get(job_id, owner=owner)).is_final:
            if until is not None and time.monotonic() >= until:
                raise TimeoutError(f"job {job_id} is still {job.state} after {timeout_s} s; wait longer.")
            time.sleep(pause_s)
            pause_s = min(LAST_LOOK_S, pause_s * 1.3)
        return job

    def cancel(self, job_id: str, *, owner: str = "local") -> JobView:
        """Ask for a stop: at once when the job waits, within one denoising step when it runs, and without
        effect when it has ended. Raises JobNotFound."""
        return self._views([jobs.cancel(self._database, job_id, owner)])[0]

    def list(self, *, owner: str = "local", limit: int = 50, cursor: str | None = None) -> JobPage:
        """A page of the owner's jobs, newest first; `limit` is from 1 to 200.

        Raises ValueError for another limit, or a cursor that did not come from a page.
        """
        rows, next_cursor = jobs.page(self._database, owner, limit, cursor)
        return JobPage(jobs=[*self._views(rows)], next_cursor=next_cursor)

    def preview(self, job_id: str, *, owner: str = "local") -> bytes | None:
        """The last preview as JPEG bytes, or None while or when there is none. Raises JobNotFound."""
        jobs.find(self._database, job_id, owner)
        return self._events.preview(job_id)

    def media(self, media_id: str, *, owner: str = "local") -> bytes:
        """The bytes of a finished picture (PNG). Raises MediaNotFound."""
        row = gallery.find(self._database, media_id, owner)
        try:
            return self._storage.get(row.sha256)
        except StorageError as error:
            raise MediaNotFound(str(error)) from error

    def workers(self) -> Mapping[str, Sequence[str]]:
        """The names of the workers that are there, each with its queues; empty when the broker is down."""
        return self._events.workers()

    def media_url(self, sha256: str) -> str:
        """Where a picture lies in the storage, for those who can reach it themselves."""
        return self._storage.url(sha256)

    def _views(self, rows: Sequence[Row[Any]]) -> Sequence[JobView]:
        pictures = jobs.outputs(self._database, [row.id for row in rows if row.state == "succeeded"])
        places = jobs.places(self._database, rows)
        latest = self._events.latest([row.id for row in rows if row.attempt > 0 and row.state != "succeeded"])
        return [view(row, pictures.get(row.id, []), latest.get(row.id), places.get(row.id)) for row in rows]


def _parsed(request: GenerateRequest | Mapping[str, Any]) -> GenerateRequest:
    if isinstance(request, GenerateRequest):
        return request
    if not isinstance(request, Mapping):
        raise RequestError("request", f"request is {request!r:.60}; it must be an object with a prompt.")
    return parse_request(request)


def _hash(request: GenerateRequest) -> str:
    """Of what was sent: fields left out stay out, so neither a default drawn at random nor a field that came with a
    later release changes it."""
    body = json.dumps(request.model_dump(mode="json", exclude_none=True), sort_keys=True)
    return hashlib.sha256(body.encode()).hexdigest()
