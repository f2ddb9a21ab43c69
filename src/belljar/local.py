"""What a server leaves in its data folder for the commands on its machine: where it listens, and the admin key."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

_MOST_BYTES = 4096
_TRIES = 100
_PAUSE_SECONDS = 0.02


def admin_key_path(data_dir: Path) -> Path:
    """Where the admin key lies, readable by its owner only."""
    return data_dir / "admin.key"


def read_admin_key(data_dir: Path) -> str | None:
    """The admin key's secret, for whoever may read it; None where there is none to read."""
    try:
        return admin_key_path(data_dir).read_text().strip() or None
    except OSError:
        return None


def address_path(data_dir: Path) -> Path:
    """Where a running server writes its address."""
    return data_dir / "run" / "server.json"


def read_address(data_dir: Path) -> str | None:
    """The URL of the server that runs on this data folder; None when none does.

    The file alone does not tell: a server that was killed leaves it, and somebody else may listen there by now. A
    running server holds a lock on it.
    """
    try:
        with address_path(data_dir).open("rb") as file:
            if not _is_locked(file.fileno()):
                return None
            return str(json.loads(file.read(_MOST_BYTES))["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


@contextlib.contextmanager
def hold_address(data_dir: Path, url: str) -> Iterator[str]:
    """Tell commands on this machine where this server listens, as long as the block runs.

    Yields the URL that they find: another server's, where one runs on this folder already, whose file is left as it is.
    Raises OSError.
    """
    path = address_path(data_dir)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    for _ in range(_TRIES):
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if (other := read_address(data_dir)) is not None:
                    yield other
                    return
                time.sleep(_PAUSE_SECONDS)  # a reader is looking, or the other one is about to write
                continue
            if not _is_still(file.fileno(), path):
                continue  # removed by the server before us, after we had opened it
            file.truncate(0)
            file.write(json.dumps({"url": url, "pid": os.getpid()}).encode())
            file.flush()
            try:
                yield url
            finally:
                path.unlink(missing_ok=True)  # while the lock is held: nobody else's
            return
    raise BlockingIOError(errno.EAGAIN, "is locked by another process", str(path))


def _is_still(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
