"""Temporary folders that their process holds a lock (flock(2)) on while it uses them.

The kernel drops the lock however the process ends, so another process can recognise abandoned folders and remove them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from belljar.system.file_locks import try_flock

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class LockedFolder:
    """A temporary folder of this process, until it is removed."""

    path: Path
    #: The descriptor that holds the lock.
    lock: int

    def remove(self) -> None:
        """Remove the folder with its content and drop the lock. Raises OSError when something cannot be removed."""
        try:
            shutil.rmtree(self.path)
        finally:
            os.close(self.lock)


@contextmanager
def temp_folder(root: Path) -> Iterator[Path]:
    """Make a folder below `root` for the block; removes abandoned ones first. Raises OSError."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    remove_abandoned(root)
    folder = make_temp_folder(root)
    try:
        yield folder.path
    finally:
        shutil.rmtree(folder.path, ignore_errors=True)
        os.close(folder.lock)


def make_temp_folder(root: Path) -> LockedFolder:
    """Make and lock a folder below `root`. Raises OSError."""
    while True:
        path = Path(tempfile.mkdtemp(dir=root))
        lock = _lock(path)
        if lock is not None and path.exists():
            return LockedFolder(path, lock)
        if lock is not None:
            os.close(lock)  # another process removed it as abandoned, before it was locked here


def remove_abandoned(root: Path) -> int:
    """Remove everything below `root` that no process holds a lock on; returns how many entries that was.

    Only folders of this module may be kept there. What cannot be removed is logged and stays.
    """
    removed = 0
    for path in sorted(root.glob("*")):
        try:
            removed += _remove_if_abandoned(path)
        except OSError as error:
            log.warning("leftover_not_removed", path=str(path), error=str(error))
    return removed


def _remove_if_abandoned(path: Path) -> bool:
    """Return whether this call removed it: False when a process holds its lock, or another removed it."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return True
    lock = _lock(path)
    if lock is None:
        return False
    LockedFolder(path, lock).remove()
    return True


def _lock(folder: Path) -> int | None:
    """Return a descriptor that holds the folder's lock; None when another process does, or the folder is missing."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    if not try_flock(descriptor):
        os.close(descriptor)
        return None
    return descriptor
