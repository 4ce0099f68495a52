"""What is removed in time, and what must stay: on a real table, real files, and a writer that is really killed."""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from mezzotint.worker import attempts, gallery, jobs, retention
from mezzotint.worker.database import Database
from mezzotint.worker.errors import JobNotFound
from mezzotint.worker.gallery import Picture
from mezzotint.worker.migrate import migrate
from mezzotint.worker.schema import jobs as table
from mezzotint.worker.settings import Settings
from mezzotint.worker.storage import Storage

KILLED_IN_A_WRITE = """
import os, signal, sys
from mezzotint.worker.storage import Storage
os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
Storage(sys.argv[1]).put("ab" * 32, bytes(100_000))
"""


class Attic:
    """A job table and a storage with ended jobs in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = Database(f"sqlite:///{folder}/jobs.db")
        migrate(self.database)
        self.storage = Storage(f"file://{folder}/media")

    def drawn(self, data: bytes) -> str:
        """A job that succeeded with one picture of these bytes."""
        new = jobs.NewJob(owner="ann", request={}, request_hash="h", flops=0, queue="image")
        job_id = str(jobs.submit(self.database, new)[0].id)
        claim = attempts.claim(self.database, job_id, 0, worker="w", lease_s=60)
        assert claim is not None
        sha256 = hashlib.sha256(data).hexdigest()
        gallery.keep(self.database, self.storage, claim, [Picture(data=data, sha256=sha256, width=1, height=1, seed=1)])
        assert attempts.commit(self.database, claim, {})
        return job_id

    def waiting(self) -> str:
        new = jobs.NewJob(owner="ann", request={}, request_hash="h", flops=0, queue="image")
        return str(jobs.submit(self.database, new)[0].id)

    def age(self, job_id: str, days: float) -> None:
        with self.database.writing() as connection:
            ago = days * 86_400
            older = {"finished_at": table.c.finished_at - ago, "created_at": table.c.created_at - ago}
            connection.execute(update(table).where(table.c.id == job_id).values(older))

    def prune(self, **settings: Any) -> int:
        given = Settings.load(data_dir=self.folder, **settings)
        return retention.prune(self.database, self.storage, given)

    def left(self) -> set[str]:
        return {row.id for row in jobs.page(self.database, "ann", 200, None)[0]}

    def files(self) -> list[bytes]:
        return sorted(path.read_bytes() for path in (self.folder / "media").rglob("*") if path.is_file())


@pytest.fixture
def attic(tmp_path: Path) -> Attic:
    return Attic(tmp_path)


def test_nothing_is_removed_unless_it_is_asked_for(attic: Attic) -> None:
    old = attic.drawn(b"old")
    attic.age(old, 10_000)
    assert attic.prune() == 0
    assert (attic.left(), attic.files()) == ({old}, [b"old"])


def test_jobs_go_by_age_with_their_pictures_and_those_that_wait_stay(attic: Attic) -> None:
    old, new, waiting = attic.drawn(b"old"), attic.drawn(b"new"), attic.waiting()
    attic.age(old, 8)
    attic.age(waiting, 800)
    assert attic.prune(retain_days=7) == 1
    assert (attic.left(), attic.files()) == ({new, waiting}, [b"new"])
    with pytest.raises(JobNotFound):
        jobs.find(attic.database, old, "ann")


def test_the_newest_jobs_stay_by_number(attic: Attic) -> None:
    ids = [attic.drawn(bytes([i])) for i in range(5)]
    assert attic.prune(retain_jobs=2) == 3
    assert (attic.left(), attic.files()) == (set(ids[3:]), [b"\x03", b"\x04"])
    assert attic.prune(retain_jobs=2) == 0


def test_the_newest_jobs_stay_by_bytes(attic: Attic) -> None:
    ids = [attic.drawn(bytes([i]) * 100) for i in range(5)]
    assert attic.prune(retain_bytes=250) == 3
    assert attic.left() == set(ids[3:])


def test_a_picture_that_a_newer_job_shares_stays(attic: Attic) -> None:
    old, new = attic.drawn(b"same"), attic.drawn(b"same")
    attic.age(old, 8)
    attic.prune(retain_days=7)
    assert (attic.left(), attic.files()) == ({new}, [b"same"])


def test_many_jobs_go_in_batches(attic: Attic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    ids = [attic.drawn(bytes([i])) for i in range(7)]
    assert attic.prune(retain_jobs=1) == 6
    assert attic.left() == {ids[-1]}


def test_files_of_no_job_go_once_they_are_old_and_nothing_else_does(attic: Attic) -> None:
    attic.drawn(b"kept")
    orphan = hashlib.sha256(b"orphan").hexdigest()
    attic.storage.put(orphan, b"orphan")
    media = attic.folder / "media"
    strangers = [media / "notes.txt", media / "ab" / "picture.png", media / ("0" * 64 + ".png"), media / ".part-here"]
    for stranger in strangers:
        stranger.parent.mkdir(exist_ok=True)
        stranger.write_bytes(b"stranger")
    assert retention.remove_orphans(attic.database, attic.storage, older_than_s=3600) == 0
    for path in media.rglob("*"):
        os.utime(path, (time.time() - 7200,) * 2)
    assert retention.remove_orphans(attic.database, attic.storage, older_than_s=3600) == 1
    assert attic.files() == [b"kept"] + [b"stranger"] * 4


def test_a_file_that_an_attempt_has_announced_is_no_orphan(attic: Attic) -> None:
    job_id = attic.waiting()
    claim = attempts.claim(attic.database, job_id, 0, worker="w", lease_s=60)
    assert claim is not None
    sha256 = hashlib.sha256(b"soon").hexdigest()
    picture = Picture(data=b"soon", sha256=sha256, width=1, height=1, seed=1)
    gallery.keep(attic.database, attic.storage, claim, [picture])
    assert retention.remove_orphans(attic.database, attic.storage, older_than_s=0) == 0
    assert attempts.commit(attic.database, claim, {})
    assert attic.storage.get(sha256) == b"soon"


def test_orphans_are_found_in_any_storage(attic: Attic) -> None:
    memory = Storage(f"memory://{attic.folder.name}/media")
    names = [hashlib.sha256(bytes([i])).hexdigest() for i in range(3)]
    for name in names:
        memory.put(name, b"x")
    assert sorted(memory.names(0)) == sorted(names)
    assert list(memory.names(3600)) == []
    assert retention.remove_orphans(attic.database, memory, older_than_s=0) == 3
    assert list(memory.names(0)) == []


@pytest.mark.faults
def test_a_worker_removes_what_a_killed_writer_left(
    make_service: Callable[..., Any], until: Callable[..., None]
) -> None:
    service = make_service(orphan_after_s=1, sweep_s=0.5, reconcile_s=0.2, retain_jobs=2)
    done = subprocess.run([sys.executable, "-c", KILLED_IN_A_WRITE, service.settings.storage_url], check=False)
    assert done.returncode == -9
    media = service.settings.data_dir / "media"
    [left] = media.glob("ab/.part-*")
    service.start_broker()
    service.start_worker()
    until(lambda: not left.exists(), 60, service.log)
    ids = [service.client.submit(service.request(seed=seed)).id for seed in range(4)]
    for job_id in ids[1:]:
        until(lambda j=job_id: j not in _active(service), 60, service.log)
    until(lambda: {job.id for job in service.client.list().jobs} == set(ids[2:]), 60, service.log)
    until(lambda: len([p for p in media.rglob("*") if p.is_file()]) == 2, 60, service.log)
    for job in service.client.list().jobs:
        assert service.client.media(job.outputs[0].media_id)


def _active(service: Any) -> set[str]:
    return {job.id for job in service.client.list().jobs if not job.is_final}
