"""Free disk space and inodes: what is left, what is kept in reserve, and whether new work is admitted.

New work stops before the reserve is touched, so running jobs can end and their results can be written. A check is one
statvfs(2) for each file system: it takes microseconds, so it is made at every admission.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from belljar.model.errors import DiskFull

log = structlog.get_logger()

MB = 1024 * 1024
#: Admission resumes at this many times the reserve, so that it does not flap.
_RESUME_FACTOR = 1.25


@dataclass(frozen=True, kw_only=True, slots=True)
class Reserve:
    """What is kept free on each file system: a size, or a share of the file system where that is smaller."""

    disk_mb: int
    inodes: int
    #: Of the file system's size and of its inodes.
    percent: float


@dataclass(frozen=True, kw_only=True, slots=True)
class FreeSpace:
    """The free space of one file system, and its reserve. `total_inodes` is 0 where inodes are not counted."""

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
        """Return the bytes above the reserve."""
        return max(0, self.free_bytes - self.reserve_bytes)

    @property
    def low_on_bytes(self) -> bool:
        return self.free_bytes < self.reserve_bytes

    @property
    def low_on_inodes(self) -> bool:
        return self.total_inodes > 0 and self.free_inodes < self.reserve_inodes

    def is_low(self, factor: float = 1.0) -> bool:
        """Return whether less than `factor` times the reserve is left."""
        few_inodes = self.total_inodes > 0 and self.free_inodes < self.reserve_inodes * factor
        return self.free_bytes < self.reserve_bytes * factor or few_inodes

    def sentence(self) -> str:
        """Return what is left and what is kept, for people. Names no path: tenants read it."""
        if self.low_on_inodes and not self.low_on_bytes:
            return f"{self.free_inodes} files can still be made, {self.reserve_inodes} are kept in reserve"
        return f"{self.free_bytes / MB:.3g} MB are free, {self.reserve_bytes / MB:.3g} MB are kept in reserve"


class DiskSpace:
    """Watches the file systems that belljar writes to."""

    def __init__(self, data_dir: Path, reserve: Reserve, more_folders: Sequence[Path] = ()) -> None:
        """Watch the file system of the data folder and those of other folders, which need not exist yet."""
        self._data_dir = data_dir
        self._reserve = reserve
        self._folders = (data_dir, *more_folders)
        self._was_low = False

    def measure(self) -> list[FreeSpace]:
        """Return the free space of each file system, each once. Raises OSError when one does not answer."""
        by_device: dict[int, FreeSpace] = {}
        for folder in self._folders:
            space = self._space(folder)
            by_device.setdefault(space.device, space)
        return list(by_device.values())

    def data(self) -> FreeSpace:
        """Return the free space of the data folder's file system, which holds machines' scratch disks."""
        return self._space(self._data_dir)

    def low(self) -> FreeSpace | None:
        """Return the file system that is short of space; None when new work may be taken. Logs each change.

        A file system that does not answer does not count as full: a write to it will fail with the reason.
        """
        try:
            factor = _RESUME_FACTOR if self._was_low else 1.0
            short = next((space for space in self.measure() if space.is_low(factor)), None)
        except OSError as error:
            log.error("disk_check_failed", error=str(error))
            return None
        if (short is not None) != self._was_low:
            self._was_low = short is not None
            self._log_change(short)
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

    def require_bytes(self, size_bytes: int, purpose: str) -> None:
        """Raise DiskFull when so many bytes in the data folder would use up the reserve; `purpose` needs them."""
        usable = self.data().usable_bytes
        if size_bytes > usable:
            raise DiskFull(
                f"{purpose} needs {size_bytes / MB:.3g} MB of disk, and {usable / MB:.3g} MB can be used; "
                "free some space",
                free_bytes=usable,
            )

    def _space(self, folder: Path) -> FreeSpace:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        about, device = os.statvfs(folder), folder.stat().st_dev
        reserve, total = self._reserve, about.f_blocks * about.f_frsize
        share = reserve.percent / 100
        return FreeSpace(
            folder=folder,
            device=device,
            free_bytes=about.f_bavail * about.f_frsize,
            total_bytes=total,
            reserve_bytes=int(min(reserve.disk_mb * MB, total * share)),
            free_inodes=about.f_favail,
            total_inodes=about.f_files,
            reserve_inodes=int(min(reserve.inodes, about.f_files * share)),
        )

    def _log_change(self, short: FreeSpace | None) -> None:
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
