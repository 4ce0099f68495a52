"""Runs one Celery worker in this process until it is told to stop."""

import os
import secrets
import warnings
from collections.abc import Sequence

from celery.platforms import SecurityWarning

from mezzotint.worker.errors import SettingsError
from mezzotint.worker.queues import DRAWING_QUEUE, INTAKE_QUEUE
from mezzotint.worker.settings import Settings

INTAKE_THREADS = 4
_QUEUES = {"image": DRAWING_QUEUE, "intake": INTAKE_QUEUE}


def parse_queues(text: str) -> list[str]:
    """Queues from their names, "image,intake" say. Raises SettingsError for an unknown one."""
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in _QUEUES]:
        raise SettingsError(f"queue {unknown[0]!r} is not known; the queues are {', '.join(_QUEUES)}.")
    return [_QUEUES[name] for name in names]


def serve(settings: Settings, queues: Sequence[str]) -> None:
    """Serve the queues. Drawings run one at a time in a child process of their own; a worker that has
    only the intake queue answers from threads, so that it never waits for a drawing.

    The settings go into this process's environment, where the application and the child read them: call
    it before anything imports `mezzotint.worker.app`.
    """
    os.environ.update(settings.environment())
    from mezzotint.worker.app import app

    # Celery warns a superuser of pickled messages; only JSON is accepted here.
    warnings.simplefilter("ignore", SecurityWarning)
    options = [f"--queues={','.join(queues)}", f"--hostname={_name(queues)}", "--without-gossip"]
    options += ["--without-mingle", f"--loglevel={settings.log_level}", *_pool(queues)]
    app.worker_main(["--quiet", "worker", *options])


def _name(queues: Sequence[str]) -> str:
    """Different for every start: a restarted worker must not take its predecessor's claims for its own."""
    return f"{name_start(queues, os.getpid())}{secrets.token_hex(3)}@%h"


def name_start(queues: Sequence[str], pid: int) -> str:
    """How the name of the worker begins that runs in process `pid`."""
    return f"{'intake' if _is_intake(queues) else queues[0]}-{pid}-"


def _pool(queues: Sequence[str]) -> list[str]:
    if _is_intake(queues):
        return ["--pool=threads", f"--concurrency={INTAKE_THREADS}"]
    return ["--pool=prefork", "--concurrency=1"]


def _is_intake(queues: Sequence[str]) -> bool:
    return set(queues) == {INTAKE_QUEUE}
