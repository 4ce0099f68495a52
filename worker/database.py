"""Connections to the job table's database: SQLite on one machine, Postgres on many."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Float, Table, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from mezzotint.worker.errors import DatabaseUnavailable, SettingsError

BUSY_TIMEOUT_S = 15


class now(FunctionElement[float]):
    """Seconds since 1970 by the database's own clock, as it stands when the statement runs."""

    type = Float()
    inherit_cache = True


@compiles(now, "sqlite")
def _sqlite_now(element: now, compiler: Any, **kw: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _postgres_now(element: now, compiler: Any, **kw: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"


class Database:
    """An engine with two kinds of transaction. Safe to share between threads, not between processes."""

    def __init__(self, url: str) -> None:
        """Connects on first use. Raises SettingsError when the address cannot be used, and DatabaseUnavailable
        when the folder of a SQLite file cannot be made."""
        self.engine = _open(url)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        self._writer = self.engine.execution_options(writing=True)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads."""
        with self.engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that writes; on SQLite it holds the one write lock from its first moment."""
        with self._writer.begin() as connection:
            yield connection

    def lock_table(self, connection: Connection, table: Table) -> None:
        """Keep other writers out of a table until the transaction ends (SQLite already does)."""
        if not self.is_sqlite:
            connection.execute(text(f'LOCK TABLE "{table.name}" IN SHARE ROW EXCLUSIVE MODE'))

    def check(self) -> None:
        """Raises DatabaseUnavailable with one sentence when the database does not answer."""
        try:
            with self.reading() as connection:
                connection.execute(text("SELECT 1"))
        except OperationalError as error:
            reason = str(error.orig).strip().splitlines()[0]
            raise DatabaseUnavailable(
                f"the database at {self.engine.url.render_as_string()} does not answer ({reason}); "
                "start it, or set MEZZOTINT_DATABASE_URL."
            ) from None

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def _open(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise SettingsError(
                f"MEZZOTINT_DATABASE_URL is {url!r}; it must begin with sqlite:/// or postgresql://."
            )
        if parsed.get_backend_name() == "sqlite":
            return _open_sqlite(parsed.database, url)
        return create_engine(parsed, pool_pre_ping=True, connect_args={"connect_timeout": 5})
    except (ArgumentError, NoSuchModuleError) as error:
        raise SettingsError(f"MEZZOTINT_DATABASE_URL is {url!r}; {error}.") from None
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"MEZZOTINT_DATABASE_URL is {url!r}, which needs {error.name}: pip install 'mezzotint[postgres]'."
        ) from None


def _open_sqlite(file: str | None, url: str) -> Engine:
    if not file or file == ":memory:":
        raise SettingsError(
            f"MEZZOTINT_DATABASE_URL is {url!r}; give the path of a file, for other processes must see it."
        )
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseUnavailable(
            f"the folder of the database {file} cannot be made ({error.strerror}); set MEZZOTINT_DATABASE_URL "
            "or MEZZOTINT_DATA_DIR to a place that can be written."
        ) from None
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # transactions are ours to begin, see _begin_sqlite
    connection.execute("PRAGMA foreign_keys = ON")
    # An accepted job survives a power cut; the fsync costs about a millisecond.
    connection.execute("PRAGMA synchronous = FULL")


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that reads first and writes later can fail as busy without waiting.
    writing = connection.get_execution_options().get("writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")
