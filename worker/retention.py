"""What is removed in time: old jobs with their pictures, when that is asked for, and files that belong to no job.

Files of no job are what a process leaves that is killed outright: half-written ones, and whole ones whose job is gone.
"""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from sqlalchemy import Select, func, select
from sqlalchemy import delete as delete_from

from mezzotint.worker import gallery
from mezzotint.worker.database import Database, now
from mezzotint.worker.schema import jobs, media
from mezzotint.worker.settings import Settings
from mezzotint.worker.storage import Storage
from mezzotint.worker.views import FINAL_STATES

logger = logging.getLogger(__name__)

PRUNE_EVERY_S = 60.0
BATCH = 200
"""Jobs or files removed in one transaction; others write between two."""
DAY_S = 86_400.0


class Retention:
    """Prunes jobs every minute, and searches the storage every MEZZOTINT_SWEEP_S; both at the first round."""

    def __init__(self, database: Database, storage: Storage, settings: Settings) -> None:
        self._database, self._storage, self._settings = database, storage, settings
        self._prune_at = self._sweep_at = 0.0

    def round(self) -> None:
        """Do what is due. Raises what the database or the storage raises; it may be cut off anywhere."""
        if time.monotonic() >= self._prune_at:
            prune(self._database, self._storage, self._settings)
            self._prune_at = time.monotonic() + min(PRUNE_EVERY_S, self._settings.sweep_s)
        if time.monotonic() >= self._sweep_at:
            remove_orphans(self._database, self._storage, self._settings.orphan_after_s)
            self._sweep_at = time.monotonic() + self._settings.sweep_s


def prune(database: Database, storage: Storage, settings: Settings) -> int:
    """Remove ended jobs beyond the set age, number and bytes of pictures, oldest first; how many went."""
    gone = 0
    if settings.retain_days:
        gone += _remove_all(database, storage, partial(_older, settings.retain_days * DAY_S))
    if settings.retain_jobs:
        gone += _remove_all(database, storage, partial(_beyond_number, settings.retain_jobs))
    if settings.retain_bytes:
        gone += _remove_all(database, storage, partial(_beyond_bytes, settings.retain_bytes))
    if gone:
        logger.info("removed %d old jobs and their pictures", gone)
    return gone


def _remove_all(database: Database, storage: Storage, ask: Callable[[], Select[tuple[str]]]) -> int:
    gone = 0
    while True:
        with database.reading() as connection:
            ids = [row.id for row in connection.execute(ask().limit(BATCH))]
        if not ids:
            return gone
        _remove(database, storage, ids)
        gone += len(ids)


def _remove(database: Database, storage: Storage, ids: Sequence[str]) -> None:
    """The files first: a job that is left without them by a crash goes in the next round."""
    gallery.drop_jobs(database, storage, ids)
    with database.writing() as connection:
        connection.execute(delete_from(jobs).where(jobs.c.id.in_(ids)))


_ended = jobs.c.state.in_(sorted(FINAL_STATES))


def _older(age_s: float) -> Select[tuple[str]]:
    return select(jobs.c.id).where(_ended, jobs.c.finished_at < now() - age_s).order_by(jobs.c.number)


def _beyond_number(count: int) -> Select[tuple[str]]:
    oldest_kept = select(jobs.c.number).where(_ended).order_by(jobs.c.number.desc()).offset(count - 1).limit(1)
    return select(jobs.c.id).where(_ended, jobs.c.number < oldest_kept.scalar_subquery()).order_by(jobs.c.number)


def _beyond_bytes(size_bytes: int) -> Select[tuple[str]]:
    """A picture that several jobs share counts for each."""
    sizes = select(media.c.job_id, func.sum(media.c.size_bytes).label("bytes")).where(media.c.kept)
    each = sizes.group_by(media.c.job_id).subquery()
    with_newer = func.sum(each.c.bytes).over(order_by=jobs.c.number.desc())
    totals = select(jobs.c.id, jobs.c.number, with_newer.label("total")).join(each, each.c.job_id == jobs.c.id)
    found = totals.where(_ended).subquery()
    return select(found.c.id).where(found.c.total > size_bytes).order_by(found.c.number)


def remove_orphans(database: Database, storage: Storage, older_than_s: float) -> int:
    """Remove half-written files, and whole ones that no job names, once they are old enough; how many went.

    A file that is being written is younger; one that some attempt has announced is named.
    """
    gone = storage.remove_half_written(older_than_s)
    batch: list[str] = []
    for sha256 in storage.names(older_than_s):
        batch.append(sha256)
        if len(batch) == BATCH:
            gone += gallery.drop_unnamed(database, storage, batch)
            batch = []
    gone += gallery.drop_unnamed(database, storage, batch) if batch else 0
    if gone:
        logger.info("removed %d files that belonged to no job", gone)
    return gone
