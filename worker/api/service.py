"""What the routes of one gateway share."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from mezzotint.worker.api.numbers import HttpNumbers
from mezzotint.worker.api.problems import Problem, retry_after
from mezzotint.worker.client import Client
from mezzotint.worker.database import Database
from mezzotint.worker.events import Events
from mezzotint.worker.settings import Settings

MAX_OPEN, MAX_OPEN_OF_OWNER = 512, 128
BUSY_RETRY_S = 5.0


class OpenAnswers:
    """Counts answers that stay open while a job goes on: each looks at the table several times a second."""

    def __init__(self) -> None:
        self._by_owner: Counter[str] = Counter()

    @contextmanager
    def place(self, owner: str) -> Iterator[None]:
        """Hold one. Raises Problem 429 when there are too many."""
        self.take(owner)
        try:
            yield
        finally:
            self.leave(owner)

    def take(self, owner: str) -> None:
        """Count one more. Raises Problem 429 when there are too many."""
        if self._by_owner[owner] >= MAX_OPEN_OF_OWNER or self._by_owner.total() >= MAX_OPEN:
            raise Problem(
                429, "too_many_open", "too many answers are open; close some, or ask for the job now and then.",
                headers=retry_after(BUSY_RETRY_S),
            )
        self._by_owner[owner] += 1

    def leave(self, owner: str) -> None:
        """Count one less."""
        self._by_owner[owner] -= 1
        if not self._by_owner[owner]:
            del self._by_owner[owner]


@dataclass(frozen=True, kw_only=True)
class Service:
    """The doors to jobs and workers, and what this process counts itself."""

    settings: Settings
    client: Client
    database: Database
    events: Events
    numbers: HttpNumbers
    open_answers: OpenAnswers = field(default_factory=OpenAnswers)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Shared = Annotated[Service, Depends(_service)]
