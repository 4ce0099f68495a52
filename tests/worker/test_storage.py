"""Files are whole or not there, named after their content, and shared by those who made the same."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from mezzotint.worker import attempts, gallery, jobs
from mezzotint.worker.database import Database
from mezzotint.worker.errors import MediaNotFound, SettingsError
from mezzotint.worker.gallery import Picture
from mezzotint.worker.migrate import migrate
from mezzotint.worker.storage import Storage, StorageError

FULL_DISK = """
import resource, sys
from mezzotint.worker.storage import Storage, StorageError
storage = Storage(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    storage.put("ab" * 32, bytes(100_000))
except StorageError as error:
    print(error)
"""


def named(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_what_was_put_is_got_back_from_any_file_system(kind: str, tmp_path: Path) -> None:
    storage = Storage(f"{kind}://{tmp_path}/media")
    storage.put(named(b"one"), b"one")
    storage.put(named(b"one"), b"one")
    assert storage.get(named(b"one")) == b"one"
    storage.remove(named(b"one"))
    storage.remove(named(b"one"))
    with pytest.raises(StorageError, match="cannot be read"):
        storage.get(named(b"one"))


def test_a_file_lies_where_its_address_says(tmp_path: Path) -> None:
    storage = Storage(f"file://{tmp_path}/media")
    storage.put(named(b"one"), b"one")
    path = Path(storage.url(named(b"one")).removeprefix("file://"))
    assert path.read_bytes() == b"one"
    assert named(b"one") in path.name


def test_a_write_that_the_system_cuts_off_is_told_and_leaves_no_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, f"file://{tmp_path}/media"],
        capture_output=True, text=True, check=True,
    )
    assert "File too large; free some space there" in done.stdout
    assert files(tmp_path) == []


def test_an_address_of_no_known_file_system_is_a_settings_error() -> None:
    with pytest.raises(SettingsError, match="MEZZOTINT_STORAGE_URL is 'nonsense://x'"):
        Storage("nonsense://x")


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(f"sqlite:///{tmp_path}/jobs.db")
    migrate(database)
    return database


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(f"file://{tmp_path}/media")


def claim_new(database: Database) -> attempts.Claim:
    new = jobs.NewJob(owner="ann", request={}, request_hash="h", flops=0, queue="image")
    job_id = jobs.submit(database, new)[0].id
    claim = attempts.claim(database, job_id, 0, worker="w", lease_s=60)
    assert claim is not None
    return claim


def picture(data: bytes) -> Picture:
    return Picture(data=data, sha256=named(data), width=1, height=1, seed=1)


def test_a_late_double_takes_back_its_own_file_and_leaves_the_shared_one(
    database: Database, storage: Storage, tmp_path: Path
) -> None:
    shared, own = picture(b"shared"), picture(b"own")
    winner, loser = claim_new(database), claim_new(database)
    gallery.keep(database, storage, winner, [shared])
    gallery.keep(database, storage, loser, [shared, own])
    attempts.commit(database, winner, {})
    gallery.drop(database, storage, loser, [shared, own])
    assert storage.get(shared.sha256) == b"shared"
    assert [path.read_bytes() for path in files(tmp_path / "media")] == [b"shared"]


def test_a_file_that_a_running_attempt_announced_stays(database: Database, storage: Storage) -> None:
    same = picture(b"same")
    loser, running = claim_new(database), claim_new(database)
    for claim in (loser, running):
        gallery.keep(database, storage, claim, [same])
    gallery.drop(database, storage, loser, [same])
    assert attempts.commit(database, running, {})
    assert storage.get(same.sha256) == b"same"


def test_a_sweep_removes_only_what_dead_attempts_left(database: Database, storage: Storage) -> None:
    dead, running, done = (claim_new(database) for _ in range(3))
    for claim, data in ((dead, b"dead"), (running, b"running"), (done, b"done")):
        gallery.keep(database, storage, claim, [picture(data)])
    attempts.commit(database, done, {})
    attempts.hand_back(database, dead)
    assert gallery.sweep(database, storage) == 1
    assert gallery.sweep(database, storage) == 0
    assert storage.get(named(b"running")) == b"running"
    assert storage.get(named(b"done")) == b"done"
    with pytest.raises(StorageError):
        storage.get(named(b"dead"))


def test_a_picture_is_found_by_its_owner_once_its_job_succeeded(database: Database, storage: Storage) -> None:
    claim = claim_new(database)
    gallery.keep(database, storage, claim, [picture(b"mine")])
    assert jobs.outputs(database, [claim.job_id]) == {claim.job_id: []}
    attempts.commit(database, claim, {})
    [row] = jobs.outputs(database, [claim.job_id])[claim.job_id]
    assert gallery.find(database, row.id, "ann").sha256 == named(b"mine")
    with pytest.raises(MediaNotFound, match=row.id):
        gallery.find(database, row.id, "bob")
