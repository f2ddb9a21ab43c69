"""Free disk and inodes: what is left, what is kept in reserve, and whether new work is admitted.

New work stops while the reserve is still there, so that jobs that run can end, and so that what they did can be
written down. Looking is a statvfs(2) for each file system: microseconds, so it is done at every admission.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from belljar.model.errors import DiskFull
from belljar.settings import Settings

log = structlog.get_logger()

MB = 1024 * 1024
#: After admission has stopped it begins again when there is this many times the reserve, so that it does not flap.
_RESUME = 1.25


@dataclass(frozen=True, kw_only=True, slots=True)
class FreeSpace:
    """What one file system has, and the reserve on it. `total_inodes` is 0 where inodes are not counted."""

    folder: Path
    device: int
    free_bytes: int
    total_bytes: int
    reserve_bytes: int
    free_inodes: int
    total_inodes: int
    reserve_inodes: int

    @property
    def usable_bytes(self) -> int:
        """Bytes that may be promised: those above the reserve."""
        return max(0, self.free_bytes - self.reserve_bytes)

    @property
    def low_on_bytes(self) -> bool:
        return self.free_bytes < self.reserve_bytes

    @property
    def low_on_inodes(self) -> bool:
        return self.total_inodes > 0 and self.free_inodes < self.reserve_inodes

    def is_low(self, factor: float = 1.0) -> bool:
        """Whether less than `factor` times the reserve is left."""
        few_inodes = self.total_inodes > 0 and self.free_inodes < self.reserve_inodes * factor
        return self.free_bytes < self.reserve_bytes * factor or few_inodes

    def sentence(self) -> str:
        """What is left of what, for people. Names no path: tenants read it."""
        if self.low_on_inodes and not self.low_on_bytes:
            return f"{self.free_inodes} files can still be made, {self.reserve_inodes} are kept in reserve"
        return f"{self.free_bytes / MB:.3g} MB are free, {self.reserve_bytes / MB:.3g} MB are kept in reserve"


class DiskSpace:
    """Watches the file systems that belljar writes to: those of the data folder, its `run`, the blobs, the database."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folders = tuple(_folders(settings))
        self._was_low = False

    def look(self) -> list[FreeSpace]:
        """Return what each file system has now, each once. Raises OSError when a file system does not answer."""
        found: dict[int, FreeSpace] = {}
        for folder in self._folders:
            space = self._space(folder)
            found.setdefault(space.device, space)
        return list(found.values())

    def data(self) -> FreeSpace:
        """Return what the data folder's file system has: where machines' scratch disks are."""
        return self._space(self._settings.data_dir)

    def low(self) -> FreeSpace | None:
        """Return the file system that is short, None when new work may be taken. Logs each change.

        A file system that does not answer is not held to be full: whoever writes to it will say what is wrong.
        """
        try:
            factor = _RESUME if self._was_low else 1.0
            short = next((space for space in self.look() if space.is_low(factor)), None)
        except OSError as error:
            log.error("disk_not_read", error=str(error))
            return None
        if (short is not None) != self._was_low:
            self._was_low = short is not None
            self._tell(short)
        return short

    def require(self) -> None:
        """Raise DiskFull when no new work may be taken."""
        short = self.low()
        if short is not None:
            raise DiskFull(
                f"too little disk space is left for new work ({short.sentence()}); try again later",
                free_bytes=short.free_bytes,
                reserve_bytes=short.reserve_bytes,
            )

    def require_room(self, size_bytes: int, what: str) -> None:
        """Raise DiskFull when `what`, of so many bytes in the data folder, would use up the reserve."""
        usable = self.data().usable_bytes
        if size_bytes > usable:
            raise DiskFull(
                f"{what} needs {size_bytes / MB:.3g} MB of disk, and {usable / MB:.3g} MB can be used; free some space",
                free_bytes=usable,
            )

    def _space(self, folder: Path) -> FreeSpace:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        about, device = os.statvfs(folder), folder.stat().st_dev
        settings, total = self._settings, about.f_blocks * about.f_frsize
        share = settings.min_free_disk_percent / 100
        return FreeSpace(
            folder=folder,
            device=device,
            free_bytes=about.f_bavail * about.f_frsize,
            total_bytes=total,
            reserve_bytes=int(min(settings.min_free_disk_mb * MB, total * share)),
            free_inodes=about.f_favail,
            total_inodes=about.f_files,
            reserve_inodes=int(min(settings.min_free_inodes, about.f_files * share)),
        )

    def _tell(self, short: FreeSpace | None) -> None:
        if short is None:
            log.info("disk_recovered")
            return
        log.error(
            "disk_low",
            folder=str(short.folder),
            free_mb=short.free_bytes // MB,
            reserve_mb=short.reserve_bytes // MB,
            free_inodes=short.free_inodes,
            advice="no new jobs and uploads are taken until there is room; free some space, or run: belljar gc",
        )


def _folders(settings: Settings) -> Iterator[Path]:
    yield settings.data_dir
    yield settings.data_dir / "run"
    if settings.blobs_url is None:
        yield settings.data_dir / "blobs"
    elif settings.blobs_url.startswith("file://"):
        yield Path(settings.blobs_url.removeprefix("file://"))
    if settings.database_url is not None and settings.database_url.startswith("sqlite:///"):
        yield Path(settings.database_url.removeprefix("sqlite:///")).absolute().parent
