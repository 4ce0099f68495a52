"""Keeps an attempt's lease while it runs, from a thread of its own."""

import logging
import threading
from types import TracebackType
from typing import Self

from sqlalchemy.exc import SQLAlchemyError

from mezzotint.worker import attempts
from mezzotint.worker.attempts import Claim
from mezzotint.worker.database import Database

logger = logging.getLogger(__name__)


class Lease:
    """A context in which the lease is renewed three times as often as it must be.

    A stopped or dead process renews nothing, and so loses its job to another one; that is the point.
    """

    def __init__(self, database: Database, claim: Claim, lease_s: float) -> None:
        self._database, self._claim, self._lease_s = database, claim, lease_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"lease-{claim.job_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()

    def _renew(self) -> None:
        while not self._done.wait(self._lease_s / 3):
            try:
                if not attempts.renew(self._database, self._claim, self._lease_s):
                    return
            except SQLAlchemyError as error:
                # The next round tries again; if none succeeds in time the lease is lost, as it should be.
                logger.warning("the lease of job %s could not be renewed: %s", self._claim.job_id, error)
