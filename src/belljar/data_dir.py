"""The data folder: private to the user that runs belljar, from its first moment and whatever the umask is.

Jobs' environments, scripts, keys' digests and logs lie in it, so that no other user of this host may enter it. Machines
that run as users of their own need no way in: they are given descriptors, or files in a root of their own.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from belljar.model.errors import BelljarError, DataFolderError, DiskFull

#: What lies in the data folder and is nobody else's, should the folder itself be opened to others one day.
_PRIVATE_FOLDERS = ("run", "blobs", "snapshots", "cache", "layers")
_OURS = {*_PRIVATE_FOLDERS, "admin.key", "belljar.toml", "images", "layers", "recipes"}
_PRIVATE_FILES = ("admin.key", "belljar.db*", "run/server.json", "run/worker")
#: Locked by the worker, whose name is in it.
WORKER_FILE = "run/worker"
#: The folder itself is what the server locks: nothing is left of it.
_SERVER_LOCK = "run"
_TRIES = 5
_PAUSE_SECONDS = 0.02
#: The locks that this process holds.
_held: set[Path] = set()


def private_folder(path: Path) -> Path:
    """Make a folder, and those above it that are missing, for this user alone. An existing one is left as it is.

    Raises DataFolderError, DiskFull.
    """
    missing: list[Path] = []
    try:
        for each in (path, *path.parents):
            if each.exists():
                break
            missing.append(each)
        for each in reversed(missing):
            with contextlib.suppress(FileExistsError):
                each.mkdir(mode=0o700)
                each.chmod(0o700)
        path.mkdir(exist_ok=True)  # FileExistsError where it is a file
    except OSError as error:
        raise unusable(path, error) from error
    return path


def private_data_dir(data_dir: Path) -> Path:
    """Make the data folder, or take an existing one and what is private in it back from other users.

    Raises DataFolderError, DiskFull.
    """
    private_folder(data_dir)
    try:
        if _is_ours(data_dir):
            _close_to_others(data_dir)
        for name in _PRIVATE_FOLDERS:
            _close_to_others(data_dir / name)
        for pattern in _PRIVATE_FILES:
            for path in data_dir.glob(pattern):
                _close_to_others(path)
    except OSError as error:
        raise unusable(data_dir, error) from error
    return data_dir


def _is_ours(folder: Path) -> bool:
    """Whether nobody else needs a folder: not /tmp, or a home, that somebody named as the data folder."""
    names = {path.name for path in folder.iterdir()}
    return "belljar.db" in names or names <= _OURS


def _close_to_others(path: Path) -> None:
    """Take group's and others' rights away, from what is this user's own. A link is left alone, and what it names."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISLNK(status.st_mode) or status.st_uid != os.geteuid() or mode & stat.S_ISVTX or not mode & 0o077:
        return
    try:
        path.chmod(mode & 0o700)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise


def private_file(path: Path) -> None:
    """Make an empty file that only this user may read, unless it is there. Raises OSError."""
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)


def unusable(path: Path, error: OSError) -> BelljarError:
    """The error for a data folder that cannot be made or written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"no room left in {path}: free some space or move the data folder")
    return DataFolderError(f"cannot make the folder {path}: {error.strerror}; set --data-dir to another folder")


@contextlib.contextmanager
def locked(path: Path, taken: str) -> Iterator[None]:
    """Hold the lock (flock(2)) of a file or a folder until the block ends; a process that dies lets go of it.

    Raises DataFolderError with the sentence `taken` while another holds it, or when the file cannot be written.
    """
    private_folder(path.parent)
    how = os.O_RDONLY | os.O_DIRECTORY if path.is_dir() else os.O_RDWR | os.O_CREAT
    try:
        descriptor = os.open(path, how | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DataFolderError(f"cannot write {path}: {error.strerror}; set --data-dir to another folder") from error
    try:
        _take_lock(descriptor, taken)
        _held.add(path)
        yield
    finally:
        _held.discard(path)
        os.close(descriptor)


def _take_lock(descriptor: int, taken: str) -> None:
    """Take the lock, past those who only look at it for a moment (`is_served`). Raises DataFolderError."""
    for _ in range(_TRIES):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(_PAUSE_SECONDS)
    raise DataFolderError(taken)


@contextlib.contextmanager
def serving(data_dir: Path) -> Iterator[None]:
    """Be the one API server of a data folder. Raises DataFolderError while there is another."""
    path = private_folder(data_dir / _SERVER_LOCK)
    with locked(path, f"another belljar serves {data_dir} already; stop it, or set --data-dir to another folder"):
        yield


def is_served(data_dir: Path) -> bool:
    """Whether a server runs on the data folder now, as its lock tells."""
    try:
        descriptor = os.open(data_dir / _SERVER_LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextlib.contextmanager
def working(data_dir: Path) -> Iterator[None]:
    """Be the one worker of a data folder. Raises DataFolderError while there is another."""
    path = data_dir / WORKER_FILE
    with locked(path, f"another belljar works on {data_dir} already; stop it, or set --data-dir to another folder"):
        yield


@contextlib.contextmanager
def alone(data_dir: Path, why: str) -> Iterator[None]:
    """Keep every other server and worker of a data folder away until the block ends.

    Raises DataFolderError, beginning with `why`, while one is there.
    """
    taken = f"{why}, but another belljar works on {data_dir}; stop it first"
    private_folder(data_dir / _SERVER_LOCK)
    with contextlib.ExitStack() as stack:
        for name in (_SERVER_LOCK, WORKER_FILE):
            if data_dir / name not in _held:
                stack.enter_context(locked(data_dir / name, taken))
        yield
