"""Log lines of Celery's processes in the service's own form. Importing this module connects it to Celery's signals."""

import logging
import os
from typing import Any

from celery import signals

from mezzotint.worker.logs import formatter
from mezzotint.worker.settings import Settings


@signals.after_setup_logger.connect
@signals.after_setup_task_logger.connect
def _format(logger: logging.Logger, **_: Any) -> None:
    """Give every handler the formatter that the settings name."""
    wanted = formatter(Settings.load())
    for handler in logger.handlers:
        handler.setFormatter(wanted)


@signals.worker_before_create_process.connect
def _quiet_start_of_children(**_: Any) -> None:
    """A spawned child says that it starts before it has any formatter; this variable holds its level until then."""
    os.environ["_MP_FORK_LOGLEVEL_"] = str(logging.WARNING)
