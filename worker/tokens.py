"""Tokens: who may use the service from outside, as which owner, and how much of it.

A token is 256 random bits, so a plain SHA-256 of it is safe to keep: there is no dictionary to try.
"""

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, Row, and_, exists, insert, or_, select, update

from mezzotint.worker.database import Database, now
from mezzotint.worker.errors import TokenInvalid, TokenNotFound
from mezzotint.worker.schema import tokens
from mezzotint.worker.views import as_time

PREFIX = "mzt_"
"""Every token begins so: a person and a scanner for leaked secrets can tell what it is."""
SECRET_BYTES = 32
NOTE_USE_EVERY_S = 60.0
_NAME = re.compile(r"[\w .@-]{1,64}")
_OWNER = re.compile(r"[A-Za-z0-9._@-]{1,64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a token may do; None is no limit. max_active: jobs of its owner that wait or run."""

    max_active: int | None = None
    jobs_per_day: int | None = None
    requests_per_minute: int | None = None


class Token(BaseModel):
    """A token as it can be shown: its secret is not part of it."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    owner: str
    max_active: Annotated[int | None, Field(description="Jobs of its owner that may wait or run.")]
    jobs_per_day: int | None
    requests_per_minute: int | None
    created_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None


def create(
    database: Database, name: str, *, owner: str | None = None, limits: Limits | None = None
) -> tuple[Token, str]:
    """Make a token; the token, and its secret, which nobody can read again.

    owner: whose jobs and pictures it opens; None makes an owner of its own. "local" is the page's.
    Raises TokenInvalid with one sentence for a name, an owner or a limit that cannot be used.
    """
    token_id, secret = secrets.token_hex(4), PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    limits = limits or Limits()
    _check(name, owner, limits)
    values = {
        "id": token_id,
        "name": name,
        "owner": f"token-{token_id}" if owner is None else owner,
        "secret_hash": _hash(secret),
        "max_active": limits.max_active,
        "jobs_per_day": limits.jobs_per_day,
        "requests_per_minute": limits.requests_per_minute,
        "created_at": now(),
    }
    with database.writing() as connection:
        row = connection.execute(insert(tokens).values(values).returning(*tokens.c)).one()
    return _view(row), secret


def find(database: Database, secret: str) -> Token | None:
    """The token that a caller showed, or None when there is none or it was revoked.

    The search is for a hash, so the time it takes tells nothing of the secret.
    """
    if not secret.startswith(PREFIX):
        return None
    with database.reading() as connection:
        usable = and_(tokens.c.secret_hash == _hash(secret), tokens.c.revoked_at.is_(None))
        row = connection.execute(select(tokens).where(usable)).one_or_none()
    return None if row is None else _view(row)


def note_use(database: Database, token_id: str) -> None:
    """Remember that it was used, to the minute."""
    due = or_(tokens.c.last_used_at.is_(None), tokens.c.last_used_at < now() - NOTE_USE_EVERY_S)
    with database.writing() as connection:
        connection.execute(update(tokens).where(tokens.c.id == token_id, due).values(last_used_at=now()))


def revoke(database: Database, token_id: str) -> Token:
    """End a token at once; its owner's jobs and pictures stay. Raises TokenNotFound."""
    with database.writing() as connection:
        unused = and_(tokens.c.id == token_id, tokens.c.revoked_at.is_(None))
        connection.execute(update(tokens).where(unused).values(revoked_at=now()))
    with database.reading() as connection:
        row = connection.execute(select(tokens).where(tokens.c.id == token_id)).one_or_none()
    if row is None:
        raise TokenNotFound(f"there is no token {token_id!r}; `mezzotint tokens list` shows those there are.")
    return _view(row)


def list_all(database: Database) -> list[Token]:
    """Every token, oldest first, revoked ones too."""
    with database.reading() as connection:
        rows = connection.execute(select(tokens).order_by(tokens.c.created_at, tokens.c.id)).all()
    return [_view(row) for row in rows]


def has_usable(database: Database) -> bool:
    """Whether anybody could come in with a token."""
    with database.reading() as connection:
        usable: ColumnElement[bool] = exists().where(tokens.c.revoked_at.is_(None))
        return bool(connection.execute(select(usable)).scalar())


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def _check(name: str, owner: str | None, limits: Limits) -> None:
    if not _NAME.fullmatch(name):
        raise TokenInvalid(f"name is {name!r}; give 1 to 64 letters, digits, spaces or any of . _ @ -.")
    if owner is not None and not _OWNER.fullmatch(owner):
        raise TokenInvalid(f"owner is {owner!r}; give 1 to 64 letters, digits or any of . _ @ -.")
    for field in ("max_active", "jobs_per_day", "requests_per_minute"):
        value = getattr(limits, field)
        if value is not None and not 1 <= value <= 1_000_000:
            raise TokenInvalid(f"{field} is {value}; it must be from 1 to 1,000,000.")


def _view(row: Row[Any]) -> Token:
    return Token(
        id=row.id, name=row.name, owner=row.owner, max_active=row.max_active, jobs_per_day=row.jobs_per_day,
        requests_per_minute=row.requests_per_minute, created_at=as_time(row.created_at),
        last_used_at=as_time(row.last_used_at) if row.last_used_at else None,
        revoked_at=as_time(row.revoked_at) if row.revoked_at else None,
    )
