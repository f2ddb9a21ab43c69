"""Opening the metadata: what is new is made, what an older belljar wrote is migrated, anything else is refused.

A migration runs alone: while another belljar works on the data folder, nothing is changed under it. A copy of the
database as it was is kept beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import structlog
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DatabaseError

from belljar.control.store.database import UNWRITABLE, Database, is_full, sqlite_engine, told
from belljar.control.store.schema import HEAD, metadata
from belljar.data_dir import alone, data_folder_error, private_data_dir, private_file, private_folder
from belljar.model.errors import DataFolderError, DiskFull, HostError
from belljar.settings.storage import StorageSettings
from belljar.system.atomic_write import atomic_path

log = structlog.get_logger()

#: So many copies of before a migration are kept; the oldest are removed.
_BACKUPS = 3
_MIGRATIONS = Path(__file__).with_name("migrations")
_one_at_a_time = threading.Lock()


async def open_database(settings: StorageSettings, *, migrate: bool = True) -> Database:
    """Open the database that the settings name; with `migrate` off, one of another version is refused.

    Raises DataFolderError when it cannot be written, is damaged, is a newer belljar's, or is gone while what belongs to
    it is still there; DiskFull, HostError.
    """
    path = database_path(settings)
    return await asyncio.to_thread(_opened, settings, path, migrate)


def database_path(settings: StorageSettings) -> Path:
    """Where the database lies. Raises HostError for a URL of another kind."""
    url = settings.database_url
    if url is None:
        return settings.paths.database
    if not url.startswith("sqlite:///"):
        raise HostError(
            "this version keeps its metadata in SQLite; give database_url as sqlite:///PATH or leave it out"
        )
    return Path(url.removeprefix("sqlite:///")).absolute()


def _opened(settings: StorageSettings, path: Path, migrate: bool) -> Database:
    with _one_at_a_time:
        _make_private(settings, path)
        engine = sqlite_engine(path)
        try:
            _bring_up_to_date(engine, settings, path, migrate)
        except DatabaseError as error:
            engine.dispose()
            raise told(error, path) from error
        except BaseException:
            engine.dispose()
            raise
        return Database(engine, path)


def _make_private(settings: StorageSettings, path: Path) -> None:
    if path.parent == settings.data_dir:
        private_data_dir(settings.data_dir)
    else:
        private_folder(path.parent)
    # Not tried by opening: closing a file drops the locks that this process's other connections have on it (fcntl(2)).
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise DataFolderError(UNWRITABLE.format(path))
    left = _left_of_another(settings) if _is_empty(path) else []
    if left and _is_empty(path):  # still: another process may just have made it
        raise _lost(path, left)
    try:
        private_file(path)  # SQLite gives its own files beside it the same mode
    except OSError as error:
        raise data_folder_error(path.parent, error) from error


def _is_empty(path: Path) -> bool:
    """Whether no database is there, not even one without tables."""
    try:
        return path.stat().st_size == 0
    except FileNotFoundError:
        return True


def _left_of_another(settings: StorageSettings) -> list[Path]:
    """What a database that was here before knew of."""
    blobs, admin_key = settings.paths.blobs, settings.paths.admin_key
    left = [admin_key] if admin_key.exists() else []
    if settings.blobs_url is None and blobs.is_dir() and any(blobs.iterdir()):
        left.append(blobs)
    return left


def _lost(path: Path, left: list[Path]) -> DataFolderError:
    there = " and ".join(map(str, left))
    return DataFolderError(
        f"{path} is empty or gone, but {there} of before is still there: put a backup of the database in its place "
        f"({path.name}.backup-… if there is one), or move {there} away to begin anew"
    )


def _bring_up_to_date(engine: Engine, settings: StorageSettings, path: Path, migrate: bool) -> None:
    version = _read_version(engine, path)
    if version is None:
        left = _left_of_another(settings)
        if left and _read_version(engine, path) is None:
            raise _lost(path, left)
        _migrate(engine, path)
    elif version != HEAD:
        _check_known(version, path)
        if not migrate:
            raise DataFolderError(
                f"{path} is an older belljar's (schema {version}, this one's is {HEAD}); stop the server that works on "
                "it and start belljar serve, which brings it up to date"
            )
        with alone(settings.data_dir, f"{path} is to be brought up to date (schema {version} to {HEAD})"):
            log.info("database_migration_started", schema=version, size_mb=path.stat().st_size >> 20)
            started = time.monotonic()
            backup = _back_up(path, version)
            _migrate(engine, path)
            seconds = round(time.monotonic() - started, 1)
            log.info("database_migrated", schema=HEAD, seconds=seconds, backup=str(backup))
    with engine.connect() as connection:
        _check_whole(connection, path)
        connection.rollback()


def _read_version(engine: Engine, path: Path) -> str | None:
    with engine.connect() as connection:
        version = _version(connection, path)
        connection.rollback()
    return version


def _version(connection: Connection, path: Path) -> str | None:
    """The migration that the database is at; None when there is nothing in it at all. Raises DataFolderError."""
    names = _tables(connection)
    if "alembic_version" in names:
        found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars().all()
        if len(found) == 1:
            return str(found[0])
    if names:
        raise DataFolderError(f"{path} is not whole: it does not tell its version; put a backup in its place")
    return None


def _tables(connection: Connection) -> set[str]:
    return set(connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").scalars())


def _check_known(version: str, path: Path) -> None:
    if not any((_MIGRATIONS / "versions").glob(f"{version}_*.py")):
        raise DataFolderError(f"{path} was written by a newer belljar (schema {version}); upgrade belljar to use it")


def _check_whole(connection: Connection, path: Path) -> None:
    missing = sorted(metadata.tables.keys() - _tables(connection))
    if missing:
        raise DataFolderError(f"{path} is not whole: it has no table {missing[0]}; put a backup in its place")


def _migrate(engine: Engine, path: Path) -> None:
    """Bring the schema to HEAD, in one transaction that holds the write lock."""
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            if _version(connection, path) != HEAD:  # else another process was first
                _upgrade(connection)
            connection.commit()
        except BaseException:
            connection.rollback()
            raise


def _upgrade(connection: Connection) -> None:
    # Loaded only when there is something to do: it costs a tenth of a second.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _back_up(path: Path, version: str) -> Path:
    """Copy the database as it is to `NAME.backup-SCHEMA-TIMESTAMP`. Raises DiskFull, DataFolderError."""
    name = f"{path.name}.backup-{version}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    partial, backup = path.with_name(f"{name}.partial"), path.with_name(name)
    try:
        partial.unlink(missing_ok=True)
        with atomic_path(backup, temporary=partial, durable=True):
            private_file(partial)
            with _connected(path) as source, _connected(partial) as copy:
                source.backup(copy)
        for old in sorted(path.parent.glob(f"{path.name}.backup-*[!l]"), key=_modified)[:-_BACKUPS]:
            old.unlink(missing_ok=True)
        return backup
    except (OSError, sqlite3.Error) as error:
        if is_full(path.parent) or "full" in str(error):
            raise DiskFull(
                f"no room left in {path.parent} for a copy of the database before it is brought up to date: free some "
                f"space ({path.stat().st_size >> 20} MB are needed)"
            ) from error
        raise DataFolderError(f"cannot copy {path} before it is brought up to date: {error}") from error


def _modified(path: Path) -> float:
    return path.stat().st_mtime


@contextlib.contextmanager
def _connected(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path, timeout=5)) as connection:
        yield connection
