"""The connection to the metadata: SQLite in the data folder, in WAL mode. How it is opened is in opening.py.

A transaction runs in a thread of the database's own, never in the event loop. One that was begun is always brought to
its end there, committed or rolled back, even when whoever asked for it was cancelled: no connection is left half-way.

Writers take SQLite's one write lock at their start (BEGIN IMMEDIATE), so that a transaction that began by reading never
fails half-way because another wrote; inside a process they queue here instead of spinning on the lock.
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

#: How long a writer waits for another process's.
BUSY_SECONDS = 15
UNWRITABLE = "{} cannot be written; check its owner and mode, or set --data-dir to another folder"
_READERS = 4
#: Less than this is a full disk, whatever SQLite calls it: it fails to grow its shared memory with an "I/O error".
_MIN_FREE_BYTES = 256 * 1024


class Database:
    """Reading and writing transactions. Errors of the file system come out as belljar's own.

    `reading` and `writing` run a whole transaction in one go; `read` and `write` are for transactions of several
    statements with something to await in between.
    """

    def __init__(self, engine: Engine, path: Path) -> None:
        self._engine = engine
        self._path = path
        self._readers = Threads("belljar-reads", _READERS)
        self._writer = Threads("belljar-writes", 1)
        #: As many as there are connections, so that no thread ever waits for one.
        self._may_read = asyncio.Semaphore(_READERS)
        self._may_write = asyncio.Lock()

    async def reading(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction that only reads; it sees one moment of the data. Raises HostError."""
        async with self._may_read:
            return await self._readers.run_to_end(lambda: self._transaction("BEGIN", work))

    async def writing(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction that writes; what it returns is committed. Raises DiskFull, HostError."""
        async with self._may_write:
            return await self._writer.run_to_end(lambda: self._transaction("BEGIN IMMEDIATE", work))

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Transaction]:
        """A transaction that only reads; it sees one moment of the data. Raises HostError."""
        async with self._may_read, self._opened(self._readers, "BEGIN") as transaction:
            yield transaction

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Transaction]:
        """A transaction that writes, committed at the end of the block. Raises DiskFull, HostError."""
        async with self._may_write, self._opened(self._writer, "BEGIN IMMEDIATE") as transaction:
            yield transaction

    async def close(self) -> None:
        """Wait for the transactions that run, and close every connection."""

        def close() -> None:
            self._readers.shutdown()
            self._writer.shutdown()
            self._engine.dispose()

        await asyncio.to_thread(close)

    def _transaction(self, begin: str, work: Callable[[Connection], T]) -> T:
        with self._told(), self._engine.connect() as connection:
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
        def opened() -> Connection:
            with self._told():
                connection = self._engine.connect()
                try:
                    connection.exec_driver_sql(begin)
                except BaseException:
                    connection.close()
                    raise
                return connection

        def ended(how: Callable[[], None], connection: Connection) -> None:
            with self._told(), contextlib.closing(connection):
                how()

        connection = await threads.run_to_end(opened, undo=lambda connection: connection.close())
        try:
            yield Transaction(threads.run_to_end, connection, self._told)
        except BaseException:
            await threads.run_to_end(lambda: ended(connection.rollback, connection))
            raise
        await threads.run_to_end(lambda: ended(connection.commit, connection))

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except DatabaseError as error:
            raise told(error, self._path) from error


class Transaction:
    """A transaction that is open: every statement runs in a thread, and its result is whole in memory."""

    def __init__(self, run: Any, connection: Connection, told: Any) -> None:
        self._run = run
        self._connection = connection
        self._told = told

    async def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        """Execute one statement, of SQLAlchemy's kind. Raises DiskFull, HostError."""

        def execute() -> CursorResult[Any]:
            with self._told():
                result = self._connection.execute(statement, parameters)
                if result.returns_rows:
                    result.cursor_strategy = FullyBufferedCursorFetchStrategy(result.cursor)
                return result

        found: CursorResult[Any] = await self._run(execute)
        return found


def told(error: DatabaseError, path: Path) -> BelljarError:
    """The error that says what to do."""
    code = getattr(error.orig, "sqlite_errorcode", None)
    primary = code & 0xFF if isinstance(code, int) else None
    full = primary in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and is_full(path.parent)
    if full or primary == sqlite3.SQLITE_FULL:
        return DiskFull(f"no room left in {path.parent}: free some space or move the data folder")
    if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return DataFolderError(UNWRITABLE.format(path))
    if primary in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return DataFolderError(f"{path} is damaged or no SQLite database; put a backup in its place")
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return HostError(
            f"the database {path} was locked by another process for {BUSY_SECONDS} s; end what else works on it"
        )
    if "no such table" in str(error.orig) or "no such column" in str(error.orig):
        return DataFolderError(f"{path} is not whole ({error.orig}); put a backup in its place")
    return HostError(f"the database {path} failed: {error.orig}")


def is_full(folder: Path) -> bool:
    """Whether the file system of a folder has no room, or no room for another file."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return False
    return status.f_bavail * status.f_frsize < _MIN_FREE_BYTES or (status.f_files > 0 and status.f_favail == 0)


def sqlite_engine(path: Path) -> Engine:
    """An engine whose connections begin no transactions of themselves."""
    engine = create_engine(
        f"sqlite:///{path}",
        connect_args={"timeout": BUSY_SECONDS, "isolation_level": None, "check_same_thread": False},
        poolclass=QueuePool,
        pool_size=_READERS + 1,
        max_overflow=0,
        pool_reset_on_return=None,  # each transaction is ended before its connection is given back
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
