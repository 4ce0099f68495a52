"""What a worker's main process does beside Celery: announce itself, reconcile, and hand back on shutdown.

Importing this module connects it to Celery's signals. Nothing here runs in the child that draws.
"""

import logging
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from celery import signals
from redis import RedisError
from sqlalchemy.exc import SQLAlchemyError

from mezzotint.worker import attempts
from mezzotint.worker.database import Database
from mezzotint.worker.errors import ServiceError
from mezzotint.worker.events import Events
from mezzotint.worker.migrate import migrate
from mezzotint.worker.publisher import Publisher
from mezzotint.worker.reconcile import Reconciler
from mezzotint.worker.settings import Settings
from mezzotint.worker.storage import Storage

logger = logging.getLogger(__name__)

ANNOUNCE_EVERY_S = 5.0
_FAULTS = (SQLAlchemyError, RedisError, ServiceError, OSError)


class Housekeeper:
    """One thread for as long as the worker runs."""

    def __init__(self, settings: Settings, name: str, queues: Sequence[str]) -> None:
        self._settings, self._name, self._queues = settings, name, list(queues)
        self._events = Events(settings)
        self._database = Database(settings.database_url)
        storage, publisher = Storage(settings.storage_url), Publisher(settings)
        self._reconciler = Reconciler(
            database=self._database, storage=storage, publisher=publisher, settings=settings, name=name
        )
        self._stopping = threading.Event()
        self._next_announcement = 0.0
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    def start(self) -> None:
        """Make the tables if need be, and begin. Raises DatabaseUnavailable."""
        migrate(self._database)
        self._thread.start()

    def stop(self) -> None:
        """Wake the thread for its last duties; returns at once, so a signal handler may call it."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._try(self._reconciler.round)
            self._announce()
            self._stopping.wait(self._settings.reconcile_s)
        self._try(partial(attempts.ask_back, self._database, self._name, self._settings.shutdown_grace_s))
        self._events.forget_worker(self._name)

    def _announce(self) -> None:
        if time.monotonic() >= self._next_announcement:
            self._next_announcement = time.monotonic() + ANNOUNCE_EVERY_S
            self._events.announce_worker(self._name, self._queues)

    def _try(self, duty: Any) -> None:
        """A duty that fails is tried again in the next round; meanwhile drawings go on."""
        try:
            duty()
        except _FAULTS as error:
            logger.warning("housekeeping could not go on for now: %s", str(error).splitlines()[0])
        except Exception:
            # Without this thread nothing would recover any more, so not even a bug may end it.
            logger.exception("housekeeping met a fault that it does not know")


_housekeeper: Housekeeper | None = None


@signals.worker_ready.connect
def _begin(sender: Any, **_: Any) -> None:
    global _housekeeper
    queues = sorted(sender.app.amqp.queues.consume_from)
    _housekeeper = Housekeeper(Settings.load(), str(sender.hostname), queues)
    _housekeeper.start()
    logger.info("worker %s is ready for %s", sender.hostname, ", ".join(queues))


@signals.worker_shutting_down.connect
def _end(**_: Any) -> None:
    if _housekeeper is not None:
        _housekeeper.stop()
