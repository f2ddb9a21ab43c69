"""The file systems that belljar writes to with given settings, and the reserve on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from belljar.settings.storage import StorageSettings
from belljar.system.disk_space import DiskSpace, Reserve


def disk_space_of(settings: StorageSettings) -> DiskSpace:
    """Return the watch over the file systems of the data folder, its `run`, the blobs and the database."""
    reserve = Reserve(
        disk_mb=settings.min_free_disk_mb, inodes=settings.min_free_inodes, percent=settings.min_free_disk_percent
    )
    return DiskSpace(settings.data_dir, reserve, tuple(_more_folders(settings)))


def _more_folders(settings: StorageSettings) -> Iterator[Path]:
    yield settings.paths.run
    if settings.blobs_url is None:
        yield settings.paths.blobs
    elif settings.blobs_url.startswith("file://"):
        yield Path(settings.blobs_url.removeprefix("file://"))
    if settings.database_url is not None and settings.database_url.startswith("sqlite:///"):
        yield Path(settings.database_url.removeprefix("sqlite:///")).absolute().parent
