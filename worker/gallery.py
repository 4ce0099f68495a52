"""Which files belong to which attempt, so that a late double's files can go and nobody else's do.

An attempt announces its files in the media table before it writes them, and its commit marks them kept.
Files are shared by content, so a file is removed only when no row, kept or announced, names it.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, delete, exists, false, insert, not_, select

from mezzotint.worker.attempts import Claim
from mezzotint.worker.database import Database
from mezzotint.worker.errors import MediaNotFound
from mezzotint.worker.schema import jobs, media
from mezzotint.worker.storage import Storage


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A finished picture as it goes to storage."""

    data: bytes
    sha256: str
    width: int
    height: int
    seed: int


def keep(database: Database, storage: Storage, claim: Claim, pictures: list[Picture]) -> None:
    """Announce an attempt's pictures and write them. Raises StorageError."""
    rows = [
        {
            "id": uuid.uuid4().hex,
            "job_id": claim.job_id,
            "attempt": claim.attempt,
            "position": position,
            "sha256": picture.sha256,
            "size_bytes": len(picture.data),
            "width": picture.width,
            "height": picture.height,
            "seed": picture.seed,
        }
        for position, picture in enumerate(pictures)
    ]
    with database.writing() as connection:
        database.lock_table(connection, media)
        connection.execute(insert(media), rows)
    for picture in pictures:
        storage.put(picture.sha256, picture.data)


def drop(database: Database, storage: Storage, claim: Claim, pictures: list[Picture]) -> None:
    """Take back what an attempt announced that could not commit, and remove files that are no one else's."""
    mine = and_(media.c.job_id == claim.job_id, media.c.attempt == claim.attempt, not_(media.c.kept))
    _remove(database, storage, mine, {picture.sha256 for picture in pictures})


def sweep(database: Database, storage: Storage) -> int:
    """Remove what attempts that no longer run announced and never committed; how many files went."""
    live = exists().where(
        jobs.c.id == media.c.job_id, jobs.c.state == "running", jobs.c.attempt == media.c.attempt
    )
    stale = and_(not_(media.c.kept), not_(live))
    with database.reading() as connection:
        files = set(connection.execute(select(media.c.sha256).where(stale)).scalars())
    return _remove(database, storage, stale, files) if files else 0


def drop_jobs(database: Database, storage: Storage, job_ids: Sequence[str]) -> None:
    """Forget the pictures of jobs, and remove files that no other job has."""
    theirs = media.c.job_id.in_(job_ids)
    with database.reading() as connection:
        files = set(connection.execute(select(media.c.sha256).where(theirs)).scalars())
    if files:
        _remove(database, storage, theirs, files)


def drop_unnamed(database: Database, storage: Storage, files: Sequence[str]) -> int:
    """Remove those of some files that no row names; how many went."""
    with database.reading() as connection:
        named = set(connection.execute(select(media.c.sha256).where(media.c.sha256.in_(files))).scalars())
    unnamed = set(files) - named
    return _remove(database, storage, false(), unnamed) if unnamed else 0


def _remove(database: Database, storage: Storage, rows: ColumnElement[bool], files: set[str]) -> int:
    with database.writing() as connection:
        # Nobody may announce one of these files between the look and the removal.
        database.lock_table(connection, media)
        connection.execute(delete(media).where(rows))
        named = select(media.c.sha256).where(media.c.sha256.in_(files))
        unnamed = files - set(connection.execute(named).scalars())
        for sha256 in unnamed:
            storage.remove(sha256)
    return len(unnamed)


def find(database: Database, media_id: str, owner: str) -> Row[Any]:
    """The row of an owner's finished picture. Raises MediaNotFound."""
    query = select(media).join(jobs, jobs.c.id == media.c.job_id)
    query = query.where(media.c.id == media_id, media.c.kept, jobs.c.owner == owner)
    with database.reading() as connection:
        row = connection.execute(query).one_or_none()
    if row is None:
        raise MediaNotFound(f"there is no picture {media_id!r}; the job's outputs name those there are.")
    return row
