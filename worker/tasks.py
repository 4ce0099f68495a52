"""The Celery tasks: two for those who hold only the broker's address, and one that wakes a worker."""

import logging
import os
import socket
import time
from functools import lru_cache, partial
from typing import Any

from celery import Task, signals

from mezzotint.worker.app import app
from mezzotint.worker.client import Client
from mezzotint.worker.database import Database
from mezzotint.worker.engines import engine_for, prepare_engine
from mezzotint.worker.errors import NoRoom
from mezzotint.worker.events import WORKER_TTL_S, Events
from mezzotint.worker.runner import Runner
from mezzotint.worker.settings import Settings
from mezzotint.worker.storage import Storage

logger = logging.getLogger(__name__)


@app.task(name="mezzotint.generate", bind=True, ignore_result=False, acks_late=True)
def generate(self: Task, request: Any, idempotency_key: str | None = None) -> dict[str, str]:
    """Accept a request: {"job_id": ...}. The same message delivered twice is the same job.

    Its failure is a ValueError with one sentence, which Celery carries to callers without this package.
    """
    key = idempotency_key if idempotency_key is not None else f"task:{self.request.id}"
    try:
        return {"job_id": _client().submit(request, idempotency_key=key).id}
    except (ValueError, NoRoom) as error:
        raise ValueError(str(error)) from None


@app.task(name="mezzotint.job", ignore_result=False, acks_late=True)
def job(job_id: str) -> dict[str, Any]:
    """A job's state and, once it succeeded, its outputs with the storage address of each picture.

    Its failure is a LookupError when there is no such job.
    """
    try:
        found = _client().get(str(job_id))
    except LookupError as error:
        raise LookupError(str(error)) from None
    shown = found.model_dump(mode="json")
    for output in shown["outputs"]:
        output["url"] = _client().media_url(output["sha256"])
    return shown


@app.task(name="mezzotint.run", bind=True)
def run(self: Task, job_id: str, attempt: int) -> None:
    """Make one attempt at a job, if the table still wants it. Internal."""
    outcome = _runner(self.request.hostname).run(job_id, attempt)
    logger.info(
        "job %s, attempt %d: %s", job_id, attempt + 1, outcome,
        extra={"job_id": job_id, "attempt": attempt + 1, "outcome": outcome},
    )


@signals.worker_process_init.connect
def _prepare(**_: Any) -> None:
    """In the child that draws, as soon as it is there."""
    settings = Settings.load()
    prepare_engine(settings, partial(_announce_engine, Events(settings)))


def _announce_engine(events: Events) -> None:
    """Say that this process can draw, for as long as it lives."""
    name = f"{socket.gethostname()}-{os.getpid()}"
    while True:
        events.announce_engine(name)
        time.sleep(WORKER_TTL_S / 4)


@lru_cache(maxsize=1)
def _client() -> Client:
    return Client(Settings.load())


@lru_cache(maxsize=1)
def _runner(worker: str) -> Runner:
    settings = Settings.load()
    return Runner(
        database=Database(settings.database_url),
        storage=Storage(settings.storage_url),
        events=Events(settings),
        engine=partial(engine_for, settings),
        worker=worker,
        lease_s=settings.lease_s,
    )
