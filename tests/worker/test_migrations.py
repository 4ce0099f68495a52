"""The database's tables come from migrations, on both kinds of database, and match the code's."""

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from mezzotint.worker import attempts, gallery, jobs, migrate, retention, tokens
from mezzotint.worker.database import Database
from mezzotint.worker.errors import DatabaseUnavailable, NoRoom, SettingsError
from mezzotint.worker.gallery import Picture
from mezzotint.worker.quotas import quota_of
from mezzotint.worker.schema import metadata
from mezzotint.worker.settings import Settings
from mezzotint.worker.storage import Storage

POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))), None)
MIGRATE = """
import sys
from mezzotint.worker.database import Database
from mezzotint.worker.migrate import migrate
sys.stdin.readline()
migrate(Database(sys.argv[1]))
"""


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/new folder/jobs.db"


@pytest.fixture(scope="module")
def postgres() -> Iterator[Path]:
    """The socket folder of a Postgres of our own; it refuses to run as root, so then it runs as nobody."""
    if POSTGRES is None:
        pytest.skip("no Postgres server is installed here (apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="mzt-pg-"))
    as_user: dict[str, Any] = {"cwd": "/", "check": True, "stdout": subprocess.DEVNULL}
    if os.getuid() == 0:
        shutil.chown(folder, "nobody")
        as_user["user"] = "nobody"
    subprocess.run([POSTGRES, "-D", folder / "data", "-A", "trust", "-U", "me", "-N"], **as_user)
    control = [POSTGRES.with_name("pg_ctl"), "-D", folder / "data", "-l", folder / "log", "-w"]
    subprocess.run([*control, "-o", f"-c listen_addresses='' -k {folder}", "start"], **as_user)
    yield folder
    subprocess.run([*control, "-m", "immediate", "stop"], **as_user)
    shutil.rmtree(folder)


@pytest.fixture
def postgres_url(postgres: Path) -> str:
    """A new database on that server."""
    name = f"jobs_{uuid.uuid4().hex}"
    with psycopg.connect(host=str(postgres), user="me", dbname="postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"postgresql://me@/{name}?host={postgres}"


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_url"))


def test_the_migrated_tables_are_those_the_code_knows(url: str) -> None:
    database = Database(url)
    migrate.migrate(database)
    with database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    database.close()


def test_processes_that_start_at_once_migrate_once(url: str) -> None:
    starting = [
        subprocess.Popen([sys.executable, "-c", MIGRATE, url], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    for process in starting:
        process.stdin.write(b"go\n")
        process.stdin.flush()
    for process in starting:
        assert process.communicate()[1] == b""
        assert process.returncode == 0


def test_a_job_goes_from_submit_to_its_result_on_either_database(url: str) -> None:
    database = Database(url)
    migrate.migrate(database)
    new = jobs.NewJob(
        owner="ann", request={"prompt": "x"}, request_hash="h", flops=10**17, queue="image",
        idempotency_key="k",
    )
    row, is_new = jobs.submit(database, new)
    assert is_new
    assert jobs.submit(database, new) == (row, False)
    assert jobs.places(database, [row]) == {row.id: 1}
    claim = attempts.claim(database, row.id, 0, worker="w", lease_s=60)
    assert claim is not None
    assert 0 <= claim.queued_s < 60
    assert attempts.renew(database, claim, 60)
    assert attempts.order(database, claim) == "draw"
    assert attempts.commit(database, claim, {"flops": 1})
    assert jobs.find(database, row.id, "ann").result == {"flops": 1}
    database.close()


def test_the_newest_migration_is_the_one_the_code_expects() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).with_name("migrations")))
    assert ScriptDirectory.from_config(config).get_heads() == [migrate.HEAD]


def test_a_database_of_a_later_version_is_refused_and_left_alone(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    migrate.migrate(database)
    with database.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseUnavailable, match="made by another version"):
        migrate.migrate(database)


def test_a_database_that_does_not_answer_is_told_in_one_sentence() -> None:
    database = Database("postgresql://me:secret@127.0.0.1:9/jobs")
    with pytest.raises(DatabaseUnavailable, match="does not answer") as refused:
        migrate.migrate(database)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_database_whose_folder_cannot_be_made_is_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatabaseUnavailable, match="cannot be made"):
        Database(f"sqlite:///{tmp_path}/file/below/jobs.db")


@pytest.mark.parametrize("url", ["mysql://host/jobs", "sqlite://", "nonsense", "sqlite:///:memory:"])
def test_an_address_of_no_usable_database_is_a_settings_error(url: str) -> None:
    with pytest.raises(SettingsError, match="MEZZOTINT_DATABASE_URL is"):
        Database(url)


def test_a_database_with_queued_jobs_is_brought_up_to_date(url: str) -> None:
    database = Database(url)
    upgrade_to(database, "0001")
    old = {"id": "a" * 32, "owner": "ann", "queue": "image", "state": "queued", "request_hash": "h",
           "request": "{}", "flops": 1, "created_at": 1.0}
    with database.writing() as connection:
        columns, values = ", ".join(old), ", ".join(f":{name}" for name in old)
        connection.execute(text(f"INSERT INTO jobs ({columns}) VALUES ({values})"), old)
    migrate.migrate(database)
    assert jobs.find(database, "a" * 32, "ann").state == "queued"
    assert attempts.claim(database, "a" * 32, 0, worker="w", lease_s=60) is not None
    assert tokens.list_all(database) == []
    database.close()


def upgrade_to(database: Database, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).with_name("migrations")))
    with database.writing() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def test_a_token_is_spent_once_a_job_on_either_database(url: str) -> None:
    database = Database(url)
    migrate.migrate(database)
    token, secret = tokens.create(database, "few", limits=tokens.Limits(max_active=2, jobs_per_day=3))
    assert tokens.find(database, secret) == token
    new = jobs.NewJob(
        owner=token.owner, request={}, request_hash="h", flops=1, queue="image", max_queued=9, quota=quota_of(token)
    )

    def submit(_: int) -> str | None:
        try:
            return str(jobs.submit(database, new)[0].id)
        except NoRoom:
            return None

    with ThreadPoolExecutor(6) as pool:
        taken = [job_id for job_id in pool.map(submit, range(6)) if job_id]
    assert len(taken) == 2
    jobs.cancel(database, taken[0], token.owner)
    assert submit(0)
    jobs.cancel(database, taken[1], token.owner)
    with pytest.raises(NoRoom, match="allows 3 jobs a day"):
        jobs.submit(database, new)
    tokens.revoke(database, token.id)
    assert tokens.find(database, secret) is None
    database.close()


def test_old_jobs_are_removed_on_either_database(url: str, tmp_path: Path) -> None:
    database, storage = Database(url), Storage(f"file://{tmp_path}/media")
    migrate.migrate(database)
    new = jobs.NewJob(owner="ann", request={}, request_hash="h", flops=1, queue="image")
    for index in range(6):
        claim = attempts.claim(database, jobs.submit(database, new)[0].id, 0, worker="w", lease_s=60)
        assert claim is not None
        picture = Picture(data=bytes([index]) * 10, sha256=f"{index:064x}", width=1, height=1, seed=1)
        gallery.keep(database, storage, claim, [picture])
        assert attempts.commit(database, claim, {})
    waiting = jobs.submit(database, new)[0].id
    for limits, left in (({"retain_days": 1}, 6), ({"retain_jobs": 5}, 5), ({"retain_bytes": 25}, 2)):
        retention.prune(database, storage, Settings.load(data_dir=tmp_path, **limits))
        assert len(jobs.page(database, "ann", 200, None)[0]) == left + 1
        assert len(list((tmp_path / "media").rglob("*.png"))) == left
    assert jobs.find(database, waiting, "ann").state == "queued"
    database.close()
