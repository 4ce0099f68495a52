"""A Redis connection that gives up fast: nothing waits for a broker that does not answer."""

from urllib.parse import parse_qs, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from mezzotint.worker.errors import BrokerUnavailable

PATIENCE_S = 0.3


def connect(broker_url: str, patience_s: float = PATIENCE_S) -> redis.Redis:
    """A client for the broker's server; connects on first use. `patience_s` bounds every answer."""
    return redis.Redis.from_url(
        redis_url(broker_url),
        socket_timeout=patience_s,
        socket_connect_timeout=patience_s,
        retry=Retry(NoBackoff(), 0),
    )


def redis_url(broker_url: str) -> str:
    """Celery's address of a broker as redis-py writes it: a unix socket has another scheme there."""
    if not broker_url.startswith("redis+socket://"):
        return broker_url
    parts = urlsplit(broker_url)
    number = parse_qs(parts.query).get("virtual_host", ["0"])[0]
    return f"unix://{parts.path}?db={number}"


def check(broker_url: str, patience_s: float = 3.0) -> None:
    """Raises BrokerUnavailable with one sentence when the broker does not answer."""
    try:
        connect(broker_url, patience_s).ping()
    except (redis.RedisError, ValueError) as error:
        raise BrokerUnavailable(
            f"the broker at {_without_password(broker_url)} does not answer ({error}); "
            "start it (`mezzotint up` starts one), or give --broker-url."
        ) from None


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
