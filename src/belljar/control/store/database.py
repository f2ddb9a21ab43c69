"""Transactions on the metadata: SQLite in the data folder, in WAL mode. opening.py opens it.

Transactions run in threads of the database, never on the event loop. Each one that has begun is committed or rolled
back there, even when its caller is cancelled, so no connection stays in a transaction.

Writers take SQLite's write lock at the start (BEGIN IMMEDIATE), so that a transaction that began with a read never
fails because of another writer. Inside a process, writers queue for an asyncio lock instead of polling SQLite's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, CursorResult, Engine, Executable, create_engine, event
from sqlalchemy.engine.cursor import FullyBufferedCursorFetchStrategy
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import QueuePool

from belljar.model.errors import BelljarError, DataFolderError, DiskFull, HostError
from belljar.system.threads import Threads

T = TypeVar("T")

#: How long a writer waits for a writer of another process.
BUSY_SECONDS = 15
UNWRITABLE = "{} cannot be written; check its owner and mode, or set --data-dir to another folder"
_READERS = 4
#: With less free space the disk counts as full, whatever the error: SQLite reports an "I/O error" when it cannot grow
#: its shared memory.
_MIN_FREE_BYTES = 256 * 1024


class Database:
    """Read and write transactions. SQLite's errors become belljar's errors.

    `reading` and `writing` run a whole transaction; `read` and `write` are for transactions that await something
    between their statements.
    """

    def __init__(self, engine: Engine, path: Path) -> None:
        self._engine = engine
        self._path = path
        self._readers = Threads("belljar-reads", _READERS)
        self._writer = Threads("belljar-writes", 1)
        #: As many as connections, so that no thread waits for one.
        self._may_read = asyncio.Semaphore(_READERS)
        self._may_write = asyncio.Lock()

    async def reading(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a read transaction, which sees one snapshot of the data. Raises HostError."""
        async with self._may_read:
            return await self._readers.run_to_end(lambda: self._transaction("BEGIN", work))

    async def writing(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a write transaction, which is committed when it returns. Raises DiskFull, HostError."""
        async with self._may_write:
            return await self._writer.run_to_end(lambda: self._transaction("BEGIN IMMEDIATE", work))

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Transaction]:
        """Open a read transaction, which sees one snapshot of the data. Raises HostError."""
        async with self._may_read, self._opened(self._readers, "BEGIN") as transaction:
            yield transaction

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Transaction]:
        """Open a write transaction, which is committed at the end of the block. Raises DiskFull, HostError."""
        async with self._may_write, self._opened(self._writer, "BEGIN IMMEDIATE") as transaction:
            yield transaction

    async def close(self) -> None:
        """Wait for running transactions, and close all connections."""

        def close() -> None:
            self._readers.shutdown()
            self._writer.shutdown()
            self._engine.dispose()

        await asyncio.to_thread(close)

    def _transaction(self, begin: str, work: Callable[[Connection], T]) -> T:
        with self._translate_errors(), self._engine.connect() as connection:
            connection.exec_driver_sql(begin)
            try:
                result = work(connection)
                connection.commit()
            except BaseException:
                connection.rollback()
                raise
            return result

    @asynccontextmanager
    async def _opened(self, threads: Threads, begin: str) -> AsyncIterator[Transaction]:
        def begin_transaction() -> Connection:
            with self._translate_errors():
                connection = self._engine.connect()
                try:
                    connection.exec_driver_sql(begin)
                except BaseException:
                    connection.close()
                    raise
                return connection

        def end_transaction(end: Callable[[], None], connection: Connection) -> None:
            with self._translate_errors(), contextlib.closing(connection):
                end()

        connection = await threads.run_to_end(begin_transaction, undo=lambda connection: connection.close())
        try:
            yield Transaction(threads.run_to_end, connection, self._translate_errors)
        except BaseException:
            await threads.run_to_end(lambda: end_transaction(connection.rollback, connection))
            raise
        await threads.run_to_end(lambda: end_transaction(connection.commit, connection))

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except DatabaseError as error:
            raise translate_db_error(error, self._path) from error


class Transaction:
    """An open transaction: each statement runs in a thread, and its whole result is in memory."""

    def __init__(self, run: Any, connection: Connection, translate_errors: Any) -> None:
        self._run = run
        self._connection = connection
        self._translate_errors = translate_errors

    async def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        """Execute one SQLAlchemy statement. Raises DiskFull, HostError."""

        def execute() -> CursorResult[Any]:
            with self._translate_errors():
                result = self._connection.execute(statement, parameters)
                if result.returns_rows:
                    result.cursor_strategy = FullyBufferedCursorFetchStrategy(result.cursor)
                return result

        result: CursorResult[Any] = await self._run(execute)
        return result


def translate_db_error(error: DatabaseError, path: Path) -> BelljarError:
    """Return belljar's error for an error of the database."""
    code = getattr(error.orig, "sqlite_errorcode", None)
    primary = code & 0xFF if isinstance(code, int) else None
    full = primary in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and is_full(path.parent)
    if full or primary == sqlite3.SQLITE_FULL:
        return DiskFull(f"no room left in {path.parent}: free some space or move the data folder")
    if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return DataFolderError(UNWRITABLE.format(path))
    if primary in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return DataFolderError(f"{path} is damaged or not a SQLite database; restore a backup")
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return HostError(f"the database {path} was locked by another process for {BUSY_SECONDS} s; stop that process")
    if "no such table" in str(error.orig) or "no such column" in str(error.orig):
        return DataFolderError(f"{path} is incomplete ({error.orig}); restore a backup")
    return HostError(f"the database {path} failed: {error.orig}")


def is_full(folder: Path) -> bool:
    """Return whether the file system of a folder has no free space or inodes."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return False
    return status.f_bavail * status.f_frsize < _MIN_FREE_BYTES or (status.f_files > 0 and status.f_favail == 0)


def sqlite_engine(path: Path) -> Engine:
    """Return an engine whose connections begin transactions only explicitly."""
    engine = create_engine(
        f"sqlite:///{path}",
        connect_args={"timeout": BUSY_SECONDS, "isolation_level": None, "check_same_thread": False},
        poolclass=QueuePool,
        pool_size=_READERS + 1,
        max_overflow=0,
        pool_reset_on_return=None,  # each transaction ends before its connection returns to the pool
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        try:
            for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
                connection.execute(f"PRAGMA {pragma}").close()
        except BaseException:
            connection.close()
            raise

    return engine
