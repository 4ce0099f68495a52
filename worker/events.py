"""What is happening right now: progress and previews of running jobs, and which workers are there.

It lives in Redis and may be lost at any time; the job table is the truth. A broker that does not answer
costs one short wait, then it is left alone for a while, so that neither a drawing nor a page is held up.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import redis

from mezzotint.worker.redis_client import connect
from mezzotint.worker.settings import Settings

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")

KEEP_S = 3600
MAX_EVENTS = 1000
MUTE_S = 2.0
WORKER_TTL_S = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Progress of one attempt: `step` of `num_steps` done, `eta_s` seconds left as far as known."""

    attempt: int
    phase: str
    step: int
    num_steps: int
    eta_s: float | None = None


class Events:
    """Writes and reads the progress of jobs. Safe to share between threads."""

    def __init__(self, settings: Settings) -> None:
        self._redis = connect(settings.broker_url)
        self._prefix = settings.key_prefix
        self._preview_ttl_s = settings.preview_ttl_s
        self._muted_until = 0.0

    def report(self, job_id: str, event: Event, preview: bytes | None = None) -> None:
        """Append to a job's stream, and replace its preview when there is a new one."""

        def write() -> None:
            pipe = self._redis.pipeline(transaction=False)
            pipe.xadd(self._stream(job_id), {"event": json.dumps(asdict(event))}, maxlen=MAX_EVENTS)
            pipe.expire(self._stream(job_id), KEEP_S)
            if preview is not None:
                pipe.set(self._key("preview", job_id), preview, ex=self._preview_ttl_s)
            pipe.execute()

        self._ask(write, None)

    def latest(self, job_ids: Sequence[str]) -> dict[str, Event]:
        """The last event of each job that has one."""
        if not job_ids:
            return {}

        def read() -> dict[str, Event]:
            pipe = self._redis.pipeline(transaction=False)
            for job_id in job_ids:
                pipe.xrevrange(self._stream(job_id), count=1)
            answers: list[Any] = pipe.execute()
            return {i: _event(found[0]) for i, found in zip(job_ids, answers, strict=True) if found}

        return self._ask(read, {})

    def history(self, job_id: str, after: str = "0") -> list[tuple[str, Event]]:
        """A job's events after the one with id `after`, each with its id."""

        def read() -> list[tuple[str, Event]]:
            start = "-" if after == "0" else f"({after}"
            entries: Any = self._redis.xrange(self._stream(job_id), min=start)
            return [(entry[0].decode(), _event(entry)) for entry in entries]

        return self._ask(read, [])

    def preview(self, job_id: str) -> bytes | None:
        """The last preview, until it is too old."""

        def read() -> bytes | None:
            found: Any = self._redis.get(self._key("preview", job_id))
            return found

        return self._ask(read, None)

    def announce_worker(self, name: str, queues: Sequence[str]) -> None:
        """Say that a worker is there; to be said again before WORKER_TTL_S seconds are over."""
        key, value = self._key("worker", name), json.dumps(list(queues))
        self._ask(lambda: self._redis.set(key, value, ex=WORKER_TTL_S), None)

    def announce_engine(self, name: str) -> None:
        """Say that an engine is ready to draw; to be said again before WORKER_TTL_S seconds are over."""

        def write() -> None:
            pipe = self._redis.pipeline()
            pipe.zremrangebyscore(self._key("engines", "ready"), "-inf", self._now())
            pipe.zadd(self._key("engines", "ready"), {name: self._now() + WORKER_TTL_S})
            pipe.execute()

        self._ask(write, None)

    def num_engines(self) -> int | None:
        """How many engines are ready; None when the broker does not answer."""

        def read() -> int | None:
            ready: Any = self._redis.zcount(self._key("engines", "ready"), self._now(), "+inf")
            return int(ready)

        return self._ask(read, None)

    def count(self, amounts: Mapping[str, float]) -> None:
        """Add to the totals of all workers together; they begin anew when the broker is wiped."""

        def write() -> None:
            pipe = self._redis.pipeline(transaction=False)
            for name, amount in amounts.items():
                pipe.hincrbyfloat(self._key("totals", "all"), name, amount)
            pipe.execute()

        self._ask(write, None)

    def totals(self) -> dict[str, float] | None:
        """What `count` added up; None when the broker does not answer."""

        def read() -> dict[str, float] | None:
            found: Any = self._redis.hgetall(self._key("totals", "all"))
            return {name.decode(): float(value) for name, value in found.items()}

        return self._ask(read, None)

    def forget_worker(self, name: str) -> None:
        """Say that a worker has gone."""
        self._ask(lambda: self._redis.delete(self._key("worker", name)), None)

    def workers(self) -> dict[str, list[str]]:
        """The queues of each worker that is there."""

        def read() -> dict[str, list[str]]:
            start = self._key("worker", "")
            keys: list[bytes] = list(self._redis.scan_iter(match=f"{start}*"))
            values: Any = self._redis.mget(keys) if keys else []
            pairs = zip(keys, values, strict=True)
            return {key.decode().removeprefix(start): json.loads(value) for key, value in pairs if value}

        return self._ask(read, {})

    def _ask(self, question: Callable[[], Answer], otherwise: Answer) -> Answer:
        if time.monotonic() < self._muted_until:
            return otherwise
        try:
            return question()
        except redis.RedisError as error:
            self._muted_until = time.monotonic() + MUTE_S
            logger.warning("progress is not shown for now: the broker does not answer (%s)", error)
            return otherwise

    def _now(self) -> float:
        """By the server's clock, which all hosts share."""
        seconds, microseconds = self._redis.time()
        return seconds + microseconds / 1e6

    def _stream(self, job_id: str) -> str:
        return self._key("events", job_id)

    def _key(self, kind: str, name: str) -> str:
        return f"{self._prefix}{kind}:{name}"


def _event(entry: Any) -> Event:
    return Event(**json.loads(entry[1][b"event"]))
