"""Locks on files, for what several processes of this host share. The kernel drops a lock when its holder dies."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

_POLL_SECONDS = 0.01
#: struct flock of 64-bit Linux: type, whence, start, length, pid (0), with the compiler's padding.
_STRUCT_FLOCK = struct.Struct("@hhqqi0q")


def try_flock(descriptor: int, *, shared: bool = False) -> bool:
    """Take the lock (flock(2)) of an open file or folder without waiting; False while another holds it."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def try_lock(path: Path, *, wait_seconds: float = 0) -> Iterator[bool]:
    """Hold the lock of the file or folder at `path` while the block lasts; yields whether this caller has it.

    A file that is missing is made, and only the holder may remove it. Tries once, or for `wait_seconds`, which blocks.
    Raises OSError.
    """
    deadline = time.monotonic() + wait_seconds
    with _opened(path) as descriptor:
        while not try_flock(descriptor):
            if time.monotonic() >= deadline:
                yield False
                return
            time.sleep(_POLL_SECONDS)
        yield is_current(path, descriptor)


@contextmanager
def wait_for_lock(path: Path, on_wait: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Hold the lock of the file at `path`, which nobody may remove, while the block lasts. Blocks until it is free.

    `on_wait` is called once if another holds the lock. Raises OSError.
    """
    with _opened(path) as descriptor:
        if not try_flock(descriptor):
            on_wait()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@asynccontextmanager
async def byte_lock(path: Path, offset: int, wait_seconds: float) -> AsyncIterator[None]:
    """Hold the lock of one byte of the file at `path` while the block lasts: many locks, and no file for each.

    The lock belongs to the open file (fcntl(2), F_OFD_SETLK), so two holders in one process exclude each other too.
    Raises TimeoutError after `wait_seconds`, OSError.
    """
    request = _STRUCT_FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
    deadline = time.monotonic() + wait_seconds
    with _opened(path) as descriptor:
        while not _try_byte(descriptor, request):
            if time.monotonic() > deadline:
                raise TimeoutError
            await asyncio.sleep(_POLL_SECONDS)
        yield


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    flags = os.O_RDONLY | os.O_DIRECTORY if path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def is_current(path: Path, descriptor: int) -> bool:
    """Return whether `path` still names this file: its last holder may have removed it after it was opened here."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _try_byte(descriptor: int, request: bytes) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, as fcntl(2) has it
        return False
    return True
