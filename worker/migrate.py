"""Brings the database to this version's tables, from code; safe when several processes start at once."""

from pathlib import Path

from sqlalchemy import inspect, text

from mezzotint.worker.database import Database
from mezzotint.worker.errors import DatabaseUnavailable

HEAD = "0002"
"""The newest revision in migrations/versions."""
_LOCK_ID = 7_301_994


def migrate(database: Database) -> None:
    """Make or change the tables as needed; nothing happens when they are already right.

    Raises DatabaseUnavailable when the database does not answer, or is newer than this program.
    """
    database.check()
    if _revision(database) == HEAD:
        return
    if database.is_sqlite:
        _use_write_ahead_log(database)
    _upgrade(database)


def _revision(database: Database) -> str | None:
    with database.reading() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _use_write_ahead_log(database: Database) -> None:
    """Readers and the writer no longer wait for each other; the mode stays with the file."""
    raw = database.engine.raw_connection()
    try:
        raw.execute("PRAGMA journal_mode = WAL")
    finally:
        raw.close()


def _upgrade(database: Database) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    folder = Path(__file__).resolve().parent / "migrations"
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    with database.writing() as connection:
        if not database.is_sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:id)"), {"id": _LOCK_ID})
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise DatabaseUnavailable(
                f"the database at {database.engine.url.render_as_string()} was made by another version of "
                f"mezzotint ({error}); install that version, or set MEZZOTINT_DATABASE_URL to a new database."
            ) from None
