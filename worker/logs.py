"""Log lines that say which job and which request they are about, as text or as JSON."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from mezzotint.worker.settings import Settings

job_id: ContextVar[str | None] = ContextVar("job_id", default=None)
"""The job that this thread or task is at."""
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The HTTP request that it is at."""

@contextmanager
def about(job: str) -> Iterator[None]:
    """Lines that are written inside, in this thread, are about this job."""
    mark = job_id.set(job)
    try:
        yield
    finally:
        job_id.reset(mark)


_FIELDS = ("job_id", "attempt", "request_id", "owner", "status", "seconds", "outcome")


def configure(settings: Settings) -> None:
    """Set up the root logger of this process: one line an event, on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(settings))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    # Alembic tells each of its parts at every start.
    logging.getLogger("alembic").setLevel(max(logging.WARNING, root.level))


def formatter(settings: Settings) -> logging.Formatter:
    """The formatter that MEZZOTINT_LOG_FORMAT names."""
    return JsonLines() if settings.log_format == "json" else TextLines()


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """What is known of a line besides its text: given with `extra`, or from where it was written."""
    context = {"job_id": job_id.get(), "request_id": request_id.get()}
    given = {name: getattr(record, name) for name in _FIELDS if hasattr(record, name)}
    known = context | given
    return {name: known[name] for name in _FIELDS if known.get(name) is not None}


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextLines(logging.Formatter):
    """Time, level, text, and what is known besides as name=value."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line without a traceback."""
        known = " ".join(f"{name}={value}" for name, value in fields(record).items())
        return super().formatMessage(record) + (f"  {known}" if known else "")
