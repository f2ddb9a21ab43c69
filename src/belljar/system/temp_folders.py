"""Temporary folders that have an owner: a process that holds a lock (flock(2)) on the folder while it uses it.

The kernel lets go of the lock whatever ends the process, so that whoever comes next can tell what was left behind and
removes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

log = structlog.get_logger()


@contextmanager
def owned_folder(root: Path) -> Iterator[Path]:
    """A new folder below `root`, gone with the block; what killed processes left there goes too. Raises OSError."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    clear_owned(root)
    folder, lock = make_owned(root)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def make_owned(root: Path) -> tuple[Path, int]:
    """A new folder below `root`, and the descriptor that owns it until it is closed. Raises OSError."""
    while True:
        folder = Path(tempfile.mkdtemp(dir=root))
        lock = _lock(folder)
        if lock is not None and folder.exists():
            return folder, lock
        if lock is not None:
            os.close(lock)  # another process took it for left behind, between its making and its locking


def clear_owned(root: Path) -> int:
    """Remove whatever is below `root` and has no living owner; return how much that was.

    Nothing but owned folders may be kept there. What cannot be removed is logged and stays.
    """
    removed = 0
    for path in sorted(root.glob("*")):
        try:
            removed += _removed(path)
        except OSError as error:
            log.warning("leftover_not_removed", path=str(path), error=str(error))
    return removed


def _removed(path: Path) -> bool:
    """Remove one that has no owner. False when it has one, or is gone already."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return True
    lock = _lock(path)
    if lock is None:
        return False
    try:
        shutil.rmtree(path)
    finally:
        os.close(lock)
    return True


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock; None when somebody else does, or when the folder is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
