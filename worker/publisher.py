"""Wakes workers: one small message for each attempt that is to begin. It gives up in under a second."""

import logging
from typing import Any

from kombu.exceptions import OperationalError
from redis import RedisError

from mezzotint.worker.celery_setup import make_celery
from mezzotint.worker.redis_client import connect
from mezzotint.worker.settings import Settings

logger = logging.getLogger(__name__)

RUN = "mezzotint.run"
PATIENCE_S = 0.3
_BROKER_ERRORS = (OperationalError, RedisError, OSError)


class Publisher:
    """Sends `mezzotint.run` messages. Safe to share between threads."""

    def __init__(self, settings: Settings) -> None:
        self._app = make_celery(settings, patience_s=PATIENCE_S)
        self._redis = connect(settings.broker_url)
        self._prefix = settings.key_prefix

    def publish(self, job_id: str, attempt: int, queue: str) -> bool:
        """Tell the queue's workers that an attempt may begin; False when the broker does not answer."""
        try:
            self._app.send_task(RUN, (job_id, attempt), queue=queue, ignore_result=True, retry=False)
        except _BROKER_ERRORS as error:
            logger.warning("job %s waits for the broker, which does not answer (%s)", job_id, error)
            return False
        return True

    def depth(self, queue: str) -> int | None:
        """How many messages wait in a queue; None when the broker does not answer.

        Asked of Redis itself: kombu 5.7 looks for the queue without our key prefix and finds none.
        """
        try:
            waiting: Any = self._redis.llen(f"{self._prefix}{queue}")
            return int(waiting)
        except RedisError as error:
            logger.warning("queue %s cannot be measured: the broker does not answer (%s)", queue, error)
            return None
