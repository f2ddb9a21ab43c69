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


@contextmanager
def owned_folder(root: Path) -> Iterator[Path]:
    """A new folder below `root`, gone with the block; what killed processes left there goes too. Raises OSError."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    clear_owned(root)
    folder, lock = _make(root)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def clear_owned(root: Path) -> int:
    """Remove whatever is below `root` and has no living owner; return how much that was. Raises OSError.

    Nothing but owned folders may be kept there.
    """
    removed = 0
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
            removed += 1
        elif (lock := _lock(path)) is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)
            removed += 1
    return removed


def _make(root: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(dir=root))
        lock = _lock(folder)
        if lock is not None and folder.exists():
            return folder, lock
        if lock is not None:
            os.close(lock)  # another process took it for left behind, between its making and its locking


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
