"""Folders of runs without a server. Each is locked while its run lives, so that those of killed runs are told."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from belljar.data_dir import private_folder
from belljar.errors import DataFolderError


def embedded_folder(data_dir: Path) -> Path:
    """Where those folders are."""
    return data_dir / "run" / "embedded"


@contextlib.contextmanager
def work_folder(data_dir: Path) -> Iterator[Path]:
    """A folder for one run, gone with its block; removes what killed runs left. Raises DataFolderError, DiskFull."""
    root = embedded_folder(data_dir)
    private_folder(root)
    try:
        with _all_locked(root):
            _remove_abandoned(root)
            folder = Path(tempfile.mkdtemp(dir=root))
            held = _lock(folder)
    except OSError as error:
        raise DataFolderError(f"cannot write {root}: {error.strerror}; set --data-dir to another folder") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            os.close(held)


def clear_work_folders(data_dir: Path) -> None:
    """Remove the folders of runs that are no more."""
    root = embedded_folder(data_dir)
    with contextlib.suppress(OSError):
        if root.is_dir():
            with _all_locked(root):
                _remove_abandoned(root)


@contextlib.contextmanager
def _all_locked(root: Path) -> Iterator[None]:
    """Nobody else makes or removes such a folder meanwhile: one that is not locked yet would look abandoned."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_abandoned(root: Path) -> None:
    for path in root.iterdir():
        held = _lock(path)
        if held is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(held)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock; None when somebody else does, or when it is no folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
