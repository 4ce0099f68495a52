"""Who calls: without a token the owner "local" where only this machine can call, with one the token's owner."""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from mezzotint.worker import tokens
from mezzotint.worker.api.problems import Problem, retry_after
from mezzotint.worker.database import Database
from mezzotint.worker.quotas import Quota, quota_of
from mezzotint.worker.tokens import Token

LOCAL_OWNER = "local"
MAX_BUCKETS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class CallerInfo:
    """The owner of what a request makes and sees, and what is left to it."""

    owner: str
    quota: Quota | None = None


class Doorkeeper:
    """Turns the Authorization header into a caller. Its rates are counted in this process alone."""

    def __init__(self, database: Database, *, needs_token: bool) -> None:
        self._database, self._needs_token = database, needs_token
        self._rates = Rates()

    def admit(self, authorization: str | None) -> CallerInfo:
        """The caller. Raises Problem: 401 without a token where one is needed or for one that is not good, 429 for
        one that calls too often.

        Where none is needed, another program's key is ignored: OpenAI's clients cannot go without one.
        """
        scheme, _, secret = (authorization or "").partition(" ")
        secret = secret.strip() if scheme.lower() == "bearer" else ""
        if not self._needs_token and not secret.startswith(tokens.PREFIX):
            return CallerInfo(owner=LOCAL_OWNER)
        if not secret:
            raise _unauthorized("a token is needed; send the header Authorization: Bearer TOKEN.")
        token = tokens.find(self._database, secret)
        if token is None:
            raise _unauthorized("the token is not known, or it was revoked; `mezzotint tokens create` makes one.")
        return self._caller(token)

    def _caller(self, token: Token) -> CallerInfo:
        quota = quota_of(token)
        if token.requests_per_minute is not None:
            self._rates.take(token.id, token.requests_per_minute)
        if token.last_used_at is None or time.time() - token.last_used_at.timestamp() > tokens.NOTE_USE_EVERY_S:
            tokens.note_use(self._database, token.id)
        return CallerInfo(owner=token.owner, quota=quota)


class Rates:
    """One bucket a token: it holds a minute's requests and fills evenly. Called from several threads."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._counting = threading.Lock()

    def take(self, name: str, per_minute: int) -> None:
        """Count one request. Raises Problem 429 with the time to wait."""
        with self._counting:
            left = self._level(name, per_minute)
            self._buckets[name] = (left - 1 if left >= 1 else left, time.monotonic())
            while len(self._buckets) > MAX_BUCKETS:
                self._buckets.popitem(last=False)
        if left < 1:
            raise Problem(
                429, "rate_limited", f"this token allows {per_minute} requests a minute; slow down.",
                headers=retry_after((1 - left) * 60 / per_minute),
            )

    def _level(self, name: str, per_minute: int) -> float:
        now = time.monotonic()
        left, since = self._buckets.pop(name, (float(per_minute), now))
        return min(float(per_minute), left + (now - since) * per_minute / 60)


def _unauthorized(sentence: str) -> Problem:
    return Problem(401, "unauthorized", sentence, headers={"WWW-Authenticate": "Bearer"})


def _caller(request: Request) -> CallerInfo:
    keeper: Doorkeeper = request.app.state.doorkeeper
    caller = keeper.admit(request.headers.get("authorization"))
    request.state.owner = caller.owner
    return caller


Caller = Annotated[CallerInfo, Depends(_caller)]
