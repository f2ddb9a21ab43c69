"""Opens the metadata: creates a new database, migrates that of an older version, and refuses any other.

A migration requires that no other process works on the data folder. A backup of the database is kept beside it.
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

from belljar.control.store import sandbox_tables  # noqa: F401 (the metadata has its tables)
from belljar.control.store.database import UNWRITABLE, Database, is_full, sqlite_engine, translate_db_error
from belljar.control.store.schema import HEAD, metadata
from belljar.data_dir import alone, data_folder_error, private_data_dir, private_file, private_folder
from belljar.model.errors import DataFolderError, DiskFull, HostError
from belljar.settings.storage import StorageSettings
from belljar.system.atomic_write import atomic_path

log = structlog.get_logger()

#: Number of backups from before migrations; older ones are removed.
_MAX_BACKUPS = 3
_MIGRATIONS = Path(__file__).with_name("migrations")
_opening_lock = threading.Lock()


async def open_database(settings: StorageSettings, *, migrate: bool = True) -> Database:
    """Open the database of the settings. Without `migrate`, one of an older version is refused.

    Raises DataFolderError when it is not writable, damaged, of a newer version, or missing while files that belong to
    it exist; DiskFull, HostError.
    """
    path = database_path(settings)
    return await asyncio.to_thread(_open, settings, path, migrate)


def database_path(settings: StorageSettings) -> Path:
    """Return the path of the database. Raises HostError for another URL than sqlite:///."""
    url = settings.database_url
    if url is None:
        return settings.paths.database
    if not url.startswith("sqlite:///"):
        raise HostError(
            "invalid setting database_url: this version supports SQLite only; set sqlite:///PATH, or remove the setting"
        )
    return Path(url.removeprefix("sqlite:///")).absolute()


def _open(settings: StorageSettings, path: Path, migrate: bool) -> Database:
    with _opening_lock:
        _make_private(settings, path)
        engine = sqlite_engine(path)
        try:
            _create_or_migrate(engine, settings, path, migrate)
        except DatabaseError as error:
            engine.dispose()
            raise translate_db_error(error, path) from error
        except BaseException:
            engine.dispose()
            raise
        return Database(engine, path)


def _make_private(settings: StorageSettings, path: Path) -> None:
    if path.parent == settings.data_dir:
        private_data_dir(settings.data_dir)
    else:
        private_folder(path.parent)
    # Not by opening it: closing a file releases the locks of this process's other connections on it (fcntl(2)).
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise DataFolderError(UNWRITABLE.format(path))
    left = _files_of_a_database(settings) if _is_empty(path) else []
    if left and _is_empty(path):  # checked again: another process may have just created it
        raise _lost(path, left)
    try:
        private_file(path)  # SQLite creates its files beside it with the same mode
    except OSError as error:
        raise data_folder_error(path.parent, error) from error


def _is_empty(path: Path) -> bool:
    """Return whether the file is missing or empty."""
    try:
        return path.stat().st_size == 0
    except FileNotFoundError:
        return True


def _files_of_a_database(settings: StorageSettings) -> list[Path]:
    """Return the existing files that only a database in use could have created."""
    blobs, admin_key = settings.paths.blobs, settings.paths.admin_key
    left = [admin_key] if admin_key.exists() else []
    if settings.blobs_url is None and blobs.is_dir() and any(blobs.iterdir()):
        left.append(blobs)
    return left


def _lost(path: Path, left: list[Path]) -> DataFolderError:
    names = " and ".join(map(str, left))
    return DataFolderError(
        f"{path} is empty or missing, but {names} of the earlier database exists: restore a backup of the database "
        f"({path.name}.backup-… if there is one), or move {names} away to start with a new one"
    )


def _create_or_migrate(engine: Engine, settings: StorageSettings, path: Path, migrate: bool) -> None:
    version = _read_version(engine, path)
    if version is None:
        left = _files_of_a_database(settings)
        if left and _read_version(engine, path) is None:
            raise _lost(path, left)
        _migrate(engine, path)
    elif version != HEAD:
        _check_known(version, path)
        if not migrate:
            raise DataFolderError(
                f"{path} is of an older version (schema {version}, this version has {HEAD}); stop its server, and "
                "start belljar serve, which migrates it"
            )
        with alone(settings.data_dir, f"{path} must be migrated (schema {version} to {HEAD})"):
            log.info("database_migration_started", schema=version, size_mb=path.stat().st_size >> 20)
            started = time.monotonic()
            backup = _back_up(path, version)
            _migrate(engine, path)
            seconds = round(time.monotonic() - started, 1)
            log.info("database_migrated", schema=HEAD, seconds=seconds, backup=str(backup))
    with engine.connect() as connection:
        _check_complete(connection, path)
        connection.rollback()


def _read_version(engine: Engine, path: Path) -> str | None:
    with engine.connect() as connection:
        version = _version(connection, path)
        connection.rollback()
    return version


def _version(connection: Connection, path: Path) -> str | None:
    """Return the version of the schema; None when the database is empty. Raises DataFolderError."""
    names = _tables(connection)
    if "alembic_version" in names:
        versions = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars().all()
        if len(versions) == 1:
            return str(versions[0])
    if names:
        raise DataFolderError(f"{path} is incomplete: it has no schema version; restore a backup")
    return None


def _tables(connection: Connection) -> set[str]:
    return set(connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").scalars())


def _check_known(version: str, path: Path) -> None:
    if not any((_MIGRATIONS / "versions").glob(f"{version}_*.py")):
        raise DataFolderError(f"{path} is of a newer version (schema {version}); upgrade belljar to use it")


def _check_complete(connection: Connection, path: Path) -> None:
    missing = sorted(metadata.tables.keys() - _tables(connection))
    if missing:
        raise DataFolderError(f"{path} is incomplete: it has no table {missing[0]}; restore a backup")


def _migrate(engine: Engine, path: Path) -> None:
    """Migrate the schema to HEAD in one transaction, which holds the write lock."""
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            if _version(connection, path) != HEAD:  # otherwise another process has migrated it
                _upgrade(connection)
            connection.commit()
        except BaseException:
            connection.rollback()
            raise


def _upgrade(connection: Connection) -> None:
    # Imported only here, because it takes a tenth of a second.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _back_up(path: Path, version: str) -> Path:
    """Copy the database to `NAME.backup-SCHEMA-TIMESTAMP`. Raises DiskFull, DataFolderError."""
    name = f"{path.name}.backup-{version}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    partial, backup = path.with_name(f"{name}.partial"), path.with_name(name)
    try:
        partial.unlink(missing_ok=True)
        with atomic_path(backup, temporary=partial, durable=True):
            private_file(partial)
            with _connected(path) as source, _connected(partial) as copy:
                source.backup(copy)
        for old in sorted(path.parent.glob(f"{path.name}.backup-*[!l]"), key=_modified)[:-_MAX_BACKUPS]:
            old.unlink(missing_ok=True)
        return backup
    except (OSError, sqlite3.Error) as error:
        if is_full(path.parent) or "full" in str(error):
            raise DiskFull(
                f"no space in {path.parent} for a backup of the database before its migration: free some "
                f"space ({path.stat().st_size >> 20} MB are needed)"
            ) from error
        raise DataFolderError(f"cannot back up {path} before its migration: {error}") from error


def _modified(path: Path) -> float:
    return path.stat().st_mtime


@contextlib.contextmanager
def _connected(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path, timeout=5)) as connection:
        yield connection
