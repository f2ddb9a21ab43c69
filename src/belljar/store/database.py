"""The connection to the metadata: SQLite in the data folder, in WAL mode, migrated when it is opened.

Writers take SQLite's one write lock at their start (BEGIN IMMEDIATE), so that a transaction that began by reading never
fails half-way because another wrote; inside a process they queue here instead of spinning on the lock.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, event, text
from sqlalchemy.exc import DatabaseError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from belljar.errors import BelljarError, DataFolderError, DiskFull, HostError
from belljar.settings import Settings
from belljar.store.schema import HEAD

FILE_NAME = "belljar.db"
_BUSY_SECONDS = 15
_UNWRITABLE = "{} cannot be written; check its owner and mode, or set --data-dir to another folder"
_READERS = 4


class Database:
    """Reading and writing transactions. Errors of the file system come out as belljar's own."""

    def __init__(self, engine: AsyncEngine, path: Path) -> None:
        self._engine = engine
        self._path = path
        self._writing = asyncio.Lock()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that only reads; it sees one moment of the data. Raises HostError."""
        try:
            async with self._engine.begin() as connection:
                yield connection
        except DatabaseError as error:
            raise self._told(error) from error
        except PoolTimeout as error:
            raise HostError("the database is busy: no connection became free in time; try again") from error

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that writes, committed at the end of the block. Raises DiskFull, HostError."""
        try:
            async with self._writing, self._engine.connect() as connection:
                await connection.execution_options(belljar_write=True)
                async with connection.begin():
                    yield connection
        except DatabaseError as error:
            raise self._told(error) from error
        except PoolTimeout as error:
            raise HostError("the database is busy: no connection became free in time; try again") from error

    async def close(self) -> None:
        await self._engine.dispose()

    def _told(self, error: DatabaseError) -> BelljarError:
        return told(error, self._path)


def told(error: DatabaseError, path: Path) -> BelljarError:
    """The error that says what to do."""
    code = getattr(error.orig, "sqlite_errorcode", None)
    primary = code & 0xFF if isinstance(code, int) else None
    if primary == sqlite3.SQLITE_FULL:
        return DiskFull(f"no room left in {path.parent}: free some space or move the data folder")
    if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return DataFolderError(_UNWRITABLE.format(path))
    if primary in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return DataFolderError(f"{path} is damaged or no SQLite database; put a backup in its place")
    return HostError(f"the database {path} failed: {error.orig}")


async def open_database(settings: Settings) -> Database:
    """Open and migrate the database that the settings name.

    Raises DataFolderError when it cannot be written, is damaged, or is a newer belljar's; DiskFull, HostError.
    """
    path = _path(settings)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise DataFolderError(f"cannot make the folder {path.parent}: {error.strerror}; set --data-dir") from error
    # The thread of a connection that cannot be opened may outlive the event loop, and complain on stderr. Not tried by
    # opening: closing a file drops the locks that this process's other connections have on it (fcntl(2)).
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise DataFolderError(_UNWRITABLE.format(path))
    engine = _engine(path)
    try:
        await _migrate(engine, path)
    except DatabaseError as error:
        await engine.dispose()
        raise told(error, path) from error
    except BaseException:
        await engine.dispose()
        raise
    return Database(engine, path)


def _path(settings: Settings) -> Path:
    url = settings.database_url
    if url is None:
        return settings.data_dir / FILE_NAME
    if not url.startswith("sqlite:///"):
        raise HostError(
            "this version keeps its metadata in SQLite; give database_url as sqlite:///PATH or leave it out"
        )
    return Path(url.removeprefix("sqlite:///")).absolute()


def _engine(path: Path) -> AsyncEngine:
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{path}",
        connect_args={"timeout": _BUSY_SECONDS, "isolation_level": None},
        poolclass=AsyncAdaptedQueuePool,
        pool_size=_READERS,
        max_overflow=0,
    )

    @event.listens_for(engine.sync_engine, "connect")
    def prepare(connection: Any, _record: object) -> None:
        try:
            cursor = connection.cursor()
            for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()
        except BaseException:
            connection.close()  # else its thread outlives the event loop, and says so on stderr
            raise

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("belljar_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


async def _migrate(engine: AsyncEngine, path: Path) -> None:
    """Bring the schema to HEAD, in one transaction that holds the write lock."""
    async with engine.connect() as connection:
        if await _version(connection) == HEAD:
            return
    async with engine.connect() as connection:
        await connection.execution_options(belljar_write=True)
        async with connection.begin():
            version = await _version(connection, begun=True)
            if version != HEAD:
                await connection.run_sync(_upgrade, version, path)


async def _version(connection: AsyncConnection, *, begun: bool = False) -> str | None:
    """The migration that the database is at; None when it is new."""
    query = text("SELECT name FROM sqlite_master WHERE name = 'alembic_version'")
    found: str | None = None
    if (await connection.execute(query)).first() is not None:
        found = (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar()
    if not begun:
        await connection.rollback()
    return found


def _upgrade(connection: Connection, version: str | None, path: Path) -> None:
    # Loaded only when there is something to do: it costs a tenth of a second.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    known = {revision.revision for revision in ScriptDirectory.from_config(config).walk_revisions()}
    if version is not None and version not in known:
        raise DataFolderError(f"{path} was written by a newer belljar (schema {version}); upgrade belljar to use it")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
