"""Where the store lives: SQLite in a file, or PostgreSQL by URL; one transaction a write, durable before it returns.

SQLite runs with a write-ahead log and `synchronous = FULL` (https://sqlite.org/wal.html), PostgreSQL with
`synchronous_commit = on`, whatever the server's default: what `writing` has returned from survives a kill and a power
cut. Text that is deleted is overwritten (`secure_delete`), also in the log.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from demur.errors import StoreError, first_line

PATIENCE = 5.0
"""Seconds to wait for a lock that somebody else holds, or for a connection."""
MIGRATION_LOCK = 0x64656D7572
"""PostgreSQL's advisory lock while tables are made: two servers may start at once."""


def usual_place() -> str:
    """Where the store is unless told otherwise: `DEMUR_STORE`, else a file in the user's data folder."""
    import platformdirs

    return os.environ.get("DEMUR_STORE") or str(Path(platformdirs.user_data_dir("demur")) / "feedback.db")


class Database:
    """An open database, its tables as this version of demur wants them."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine, self.name = engine, name

    @classmethod
    def open(cls, where: str | Path) -> Self:
        """Opens, or makes, the database at a path or `postgresql://` URL, and brings its tables up to date.

        Raises:
            StoreError: it cannot be opened, or was made by a newer demur.
        """
        url, name = _url(str(where))
        try:
            engine = _engine(url)
        except (NoSuchModuleError, ModuleNotFoundError) as error:
            raise StoreError(
                f"the store {name} cannot be opened ({error}); give a file, or postgresql://USER@HOST/NAME after "
                "`pip install 'demur[server]'`."
            ) from error
        made = cls(engine, name)
        try:
            made._migrate()
        except BaseException:
            engine.dispose()
            raise
        return made

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that sees what was committed, and locks nobody out.

        Raises:
            StoreError: the database does not answer.
        """
        with self._told("read"), self.engine.connect() as connection:
            yield connection.execution_options(reading=True)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction: on leaving, all of it is on the disk; if anything fails, none of it is.

        Raises:
            StoreError: locked, full, read-only, gone.
        """
        with self._told("written"), self.engine.begin() as connection:
            yield connection

    def wipe(self) -> bool:
        """Empties SQLite's log, where what was deleted may still be read; False while somebody still reads it there.

        PostgreSQL's belongs to its administrator.
        """
        if self.engine.dialect.name != "sqlite":
            return True
        with self._told("written"):
            connection = self.engine.raw_connection()  # outside of a transaction
            try:
                row = connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            except sqlite3.Error as error:
                raise StoreError(f"the log of the store cannot be emptied ({first_line(error)}).") from error
            finally:
                connection.close()
        return not row[0]

    def close(self) -> None:
        """Lets go of the file, or of the connections."""
        self.engine.dispose()

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", "demur.server.feedback:migrations")
        config.set_main_option("path_separator", "os")
        try:
            with self.writing() as connection:
                if self.engine.dialect.name == "postgresql":
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except CommandError as error:
            raise StoreError(
                f"the store {self.name} was made by another version of demur ({error}); use that one, or a new store."
            ) from error

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            raise StoreError(self._sentence(error, what)) from error

    def _sentence(self, error: SQLAlchemyError, what: str) -> str:
        said = " ".join(str(getattr(error, "orig", None) or error).split())
        name, nothing = f"the store {self.name}", f"nothing was {what}"
        if "locked" in said or "lock timeout" in said:
            return f"{name} has been locked by another program for {PATIENCE:g} s; {nothing}. Try again in a moment."
        if "disk is full" in said or "No space left" in said or "could not extend" in said:
            return f"no room on the disk for {name}; {nothing}. Make room and try again."
        if "readonly" in said or "read-only" in said or "unable to open" in said:
            return f"{name} cannot be opened for writing ({said}); {nothing}. Give a place that this user may write to."
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            return f"the connection to {name} was lost ({said}); try again: an appeal that is sent twice is filed once."
        return f"{name} does not answer as it should ({said}); {nothing}. Try again."


def _url(where: str) -> tuple[Any, str]:
    # Also the name to show: never a password.
    if "://" not in where:
        path = Path(where).expanduser()
        if path.is_dir():
            raise StoreError(f"the store {where} is a folder; give a file, such as {path / 'feedback.db'}.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the folder of the store {where} cannot be made ({error}); give another file.") from error
        return make_url("sqlite://").set(database=str(path)), str(path)
    try:
        url = make_url(where)
    except ArgumentError as error:
        raise StoreError("the store's URL is none; give a file, or postgresql://USER@HOST/NAME.") from error
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise StoreError(
            f"the store cannot be in {url.get_backend_name()}; give a file, or postgresql://USER@HOST/NAME."
        )
    return url, url.render_as_string(hide_password=True)


def _engine(url: Any) -> Engine:
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, connect_args={"timeout": PATIENCE})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    milliseconds = int(PATIENCE * 1000)
    options = f"-c lock_timeout={milliseconds} -c statement_timeout={2 * milliseconds} -c synchronous_commit=on"
    connect_args = {"connect_timeout": int(PATIENCE), "options": options}
    return create_engine(url, pool_pre_ping=True, connect_args=connect_args)


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    # The driver's own BEGIN would come too late (see `_begin_sqlite`).
    connection.isolation_level = None
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # A writer asks for its lock at once: a reader that turns writer would be turned away without waiting.
    reading = connection.get_execution_options().get("reading")
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
