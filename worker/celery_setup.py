"""How Celery is set up here, for workers and for those who only publish.

Messages are only a way to wake a worker; the job table decides what is done, and the reconciler sends
again whatever got lost. So messages are acknowledged early, and nothing here keeps results of drawings.
"""

from typing import Any

from celery import Celery

from mezzotint.worker.queues import INTAKE_QUEUE
from mezzotint.worker.settings import Settings


def make_celery(settings: Settings, *, patience_s: float = 5.0) -> Celery:
    """An application for these settings. `patience_s` bounds every answer of the broker, in seconds; a
    publisher that must answer fast wants less than a worker."""
    app = Celery("mezzotint", set_as_current=False)
    app.conf.update(
        broker_url=settings.broker_url,
        broker_transport_options=_transport(settings, patience_s),
        broker_connection_timeout=patience_s,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        task_publish_retry=False,
        accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        task_default_queue=INTAKE_QUEUE,
        include=["mezzotint.worker.tasks"],
    )
    app.conf.update(_results(settings, patience_s))
    app.conf.update(_worker(settings))
    return app


def _transport(settings: Settings, patience_s: float) -> dict[str, Any]:
    return {
        "global_keyprefix": settings.key_prefix,
        # kombu waits forever unless told otherwise.
        "socket_timeout": patience_s,
        "socket_connect_timeout": patience_s,
        "socket_keepalive": True,
        "health_check_interval": 10,
        "retry_on_timeout": False,
        # Only for publishing: kombu itself would try for as long as `timeout` allows.
        "max_retries": 0,
        # An intake message of a worker that died comes back after this long.
        "visibility_timeout": 60,
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
    }


def _results(settings: Settings, patience_s: float) -> dict[str, Any]:
    """Only the two short tasks of intake have results; drawings have the job table."""
    return {
        "task_ignore_result": True,
        "result_backend": settings.broker_url,
        "result_backend_transport_options": {
            "global_keyprefix": settings.key_prefix,
            "retry_policy": {"timeout": patience_s, "max_retries": 1},
        },
        "redis_socket_timeout": patience_s,
        "redis_socket_connect_timeout": patience_s,
        "redis_retry_on_timeout": False,
        "result_expires": 3600,
    }


def _worker(settings: Settings) -> dict[str, Any]:
    return {
        # A forked child of a process that touched CUDA is broken; a spawned one never is.
        "worker_pool_start_method": "spawn",
        "worker_concurrency": 1,
        # A message fetched early would wait behind a long drawing while another worker is free.
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        # Celery kills a child that takes 4 s to start, and a busy machine needs longer.
        "worker_proc_alive_timeout": 120,
        "worker_redirect_stdouts": False,
        "worker_send_task_events": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "task_acks_late": False,
        "task_time_limit": settings.attempt_limit_s,
    }
