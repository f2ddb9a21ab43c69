"""Whose turn it is with something that several processes of this host may make: a lock on a file (flock(2))."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Whether this caller has the lock, which is that of the file at `path`, while the block lasts. Does not wait.

    The file is made; whoever has the lock may remove it. Raises OSError.
    """
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        # Whoever had it before may have removed the file between its opening here and its locking.
        yield path.exists() and os.fstat(lock.fileno()).st_ino == path.stat().st_ino
