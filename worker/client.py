"""The one way to the jobs from Python: the page and the command line use it. No torch here."""

import copy
import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Self

from sqlalchemy import Row

from mezzotint.sampling.intake import accept
from mezzotint.sampling.request import GenerateRequest, RequestError, parse_request
from mezzotint.worker import gallery, jobs, tokens
from mezzotint.worker.database import Database
from mezzotint.worker.errors import MediaNotFound, NotRetryable
from mezzotint.worker.events import Event, Events
from mezzotint.worker.migrate import migrate
from mezzotint.worker.publisher import Publisher
from mezzotint.worker.queues import DRAWING_QUEUE
from mezzotint.worker.quotas import Quota, quota_of
from mezzotint.worker.settings import Settings
from mezzotint.worker.storage import Storage, StorageError
from mezzotint.worker.views import JobPage, JobView, State, view

FIRST_LOOK_S, LAST_LOOK_S = 0.02, 0.25
"""How often `wait` reads the table: at first, and after a while."""
RETRYABLE = ("failed", "dead", "cancelled")


class Client:
    """Submits jobs and reads them back. Safe to share between threads.

    Every read is of the job table, which is the truth; progress is added from the broker when it answers.
    `owner` None is the client's own: "local", or that of the token it was signed in with. A job of another owner is
    a JobNotFound.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        """Connect on first use. Raises SettingsError when a MEZZOTINT_* variable cannot be used."""
        self.settings = settings or Settings.load()
        self._events = Events(self.settings)
        self._publisher = Publisher(self.settings)
        self._storage = Storage(self.settings.storage_url)
        self._opening = threading.Lock()
        self._owner = "local"
        self._quota: Quota | None = None

    def sign_in(self, secret: str) -> Self | None:
        """A client of the same connections that acts for a token's owner, within what the token allows; None when
        the token is not known or was revoked."""
        token = tokens.find(self._database, secret)
        if token is None:
            return None
        signed_in = copy.copy(self)
        signed_in._owner, signed_in._quota = token.owner, quota_of(token)
        return signed_in

    @property
    def owner(self) -> str:
        """Whose jobs these are when no other owner is named."""
        return self._owner

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
        owner: str | None = None,
        idempotency_key: str | None = None,
        quota: Quota | None = None,
    ) -> JobView:
        """Check a request, write its job and tell a worker; answers in under a second, broker or not.

        Raises RequestError (nothing is queued), IdempotencyConflict when the owner used the key before for
        another request, NoRoom when the queue or the quota is full, and DatabaseUnavailable.
        """
        sent = _parsed(request)
        complete, plan = accept(sent)
        job = jobs.NewJob(
            owner=owner or self._owner,
            request=complete.model_dump(mode="json"),
            request_hash=_hash(sent),
            flops=plan.flops,
            queue=DRAWING_QUEUE,
            idempotency_key=idempotency_key,
            max_queued=self.settings.max_queued,
            quota=quota or self._quota,
        )
        row, is_new = jobs.submit(self._database, job)
        if is_new and not self._publisher.publish(row.id, row.attempt, row.queue):
            jobs.mark_published(self._database, row.id, row.attempt, False)
        return self._views([row])[0]

    def get(self, job_id: str, *, owner: str | None = None) -> JobView:
        """The job as it stands. Raises JobNotFound."""
        return self._views([jobs.find(self._database, job_id, owner or self._owner)])[0]

    def wait(self, job_id: str, *, owner: str | None = None, timeout_s: float | None = None) -> JobView:
        """The job once its state is final. Raises JobNotFound, and TimeoutError after `timeout_s` seconds."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        pause_s = FIRST_LOOK_S
        while not (job := self.get(job_id, owner=owner)).is_final:
            if until is not None and time.monotonic() >= until:
                raise TimeoutError(f"job {job_id} is still {job.state} after {timeout_s} s; wait longer.")
            time.sleep(pause_s)
            pause_s = min(LAST_LOOK_S, pause_s * 1.3)
        return job

    def cancel(self, job_id: str, *, owner: str | None = None) -> JobView:
        """Ask for a stop: at once when the job waits, within one denoising step when it runs, and without
        effect when it has ended. Raises JobNotFound."""
        return self._views([jobs.cancel(self._database, job_id, owner or self._owner)])[0]

    def retry(
        self,
        job_id: str,
        *,
        owner: str | None = None,
        idempotency_key: str | None = None,
        quota: Quota | None = None,
    ) -> JobView:
        """Submit the request of a job that failed, is dead or was cancelled once more, as a new job with the same seed.

        Raises JobNotFound, NotRetryable for a job in another state, and what `submit` raises.
        """
        old = jobs.find(self._database, job_id, owner or self._owner)
        if old.state not in RETRYABLE:
            raise NotRetryable(f"job {job_id} is {old.state}; only a {', '.join(RETRYABLE)} job is tried again.")
        return self.submit(old.request, owner=owner, idempotency_key=idempotency_key, quota=quota)

    def changes(
        self, job_id: str, *, owner: str | None = None, after: str = "0"
    ) -> tuple[JobView, Sequence[tuple[str, Event]]]:
        """The job, and its progress after the event with id `after`, each event with its id. Raises JobNotFound.

        The job is read first: once it is final, its progress is complete.
        """
        job = self.get(job_id, owner=owner)
        return job, self._events.history(job_id, after)

    def stream(self, job_id: str, *, owner: str | None = None) -> Iterator[JobView | Event]:
        """The job whenever its state or place changes, and its progress between, until it is final.

        Raises JobNotFound.
        """
        after, shown = "0", None
        while True:
            job, events = self.changes(job_id, owner=owner, after=after)
            yield from (event for _, event in events)
            after = events[-1][0] if events else after
            if job.mark != shown:
                shown = job.mark
                yield job
            if job.is_final:
                return
            time.sleep(LAST_LOOK_S)

    def list(
        self, *, owner: str | None = None, limit: int = 50, cursor: str | None = None, state: State | None = None
    ) -> JobPage:
        """A page of the owner's jobs, newest first, all or those in one state; `limit` is from 1 to 200.

        Raises ValueError for another limit, or a cursor that did not come from a page.
        """
        rows, next_cursor = jobs.page(self._database, owner or self._owner, limit, cursor, state)
        return JobPage(jobs=[*self._views(rows)], next_cursor=next_cursor)

    def preview(self, job_id: str, *, owner: str | None = None) -> bytes | None:
        """The last preview as JPEG bytes, or None while or when there is none. Raises JobNotFound."""
        jobs.find(self._database, job_id, owner or self._owner)
        return self._events.preview(job_id)

    def media(self, media_id: str, *, owner: str | None = None) -> bytes:
        """The bytes of a finished picture (PNG). Raises MediaNotFound."""
        row = gallery.find(self._database, media_id, owner or self._owner)
        try:
            return self._storage.get(row.sha256)
        except StorageError as error:
            raise MediaNotFound(str(error)) from error

    def find_media(self, media_id: str, *, owner: str | None = None) -> Row[Any]:
        """What the table says of a finished picture: its sha256, size_bytes, width, height and seed.

        Raises MediaNotFound.
        """
        return gallery.find(self._database, media_id, owner or self._owner)

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
