"""Folders in which uploads are received and extracted: one for each upload, below the data folder's `run/uploads`.

The process that uses a folder locks it (flock(2)) and removes it when the upload ends, also on failure. The kernel
drops the lock of a process that dies; `clear_stale_uploads` removes the folders without a lock.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from belljar.data_dir import DataDir
from belljar.model.errors import DataFolderError, DiskFull, TooLarge
from belljar.scripts.limits import MB
from belljar.system.temp_folders import clear_owned, make_owned

T = TypeVar("T")

_BUFFER_BYTES = 1024 * 1024
#: Separate from the event loop's default executor, because an upload may occupy a thread for seconds.
_threads = ThreadPoolExecutor(4, thread_name_prefix="upload")


@asynccontextmanager
async def upload_folder(data_dir: Path) -> AsyncIterator[Path]:
    """Yield an empty folder for one upload, removed when the block ends. Raises DiskFull, DataFolderError."""
    folder, lock = await in_thread(partial(_make_folder, data_dir))
    try:
        yield folder
    finally:
        await in_thread(partial(_remove_folder, folder, lock))


def clear_stale_uploads(data_dir: Path) -> int:
    """Remove the upload folders of processes that died, and return their number; call it when a process starts.

    Other files there are removed too; errors are logged.
    """
    return clear_owned(_uploads(data_dir))


async def receive(chunks: AsyncIterator[bytes], path: Path, max_bytes: int) -> int:
    """Write a stream to the new file `path` without blocking the event loop, and return its length in bytes.

    Raises TooLarge as soon as it is over `max_bytes`, DiskFull.
    """
    size = 0
    buffer = bytearray()
    with path.open("xb", buffering=0) as out:
        async for chunk in chunks:
            size += len(chunk)
            if size > max_bytes:
                raise too_large(max_bytes)
            buffer += chunk
            if len(buffer) >= _BUFFER_BYTES:
                await in_thread(partial(_write, out.fileno(), buffer, path))
                buffer.clear()
        await in_thread(partial(_write, out.fileno(), buffer, path))
    return size


def too_large(max_bytes: int) -> TooLarge:
    """Return the error for an upload over `max_bytes`."""
    return TooLarge(f"the upload is over {max_bytes / MB:g} MB; make it smaller, or raise max_upload_mb")


async def in_thread(work: Callable[[], T], stop: Callable[[], None] = lambda: None) -> T:
    """Run blocking work in a thread. On cancellation call `stop` and wait for the thread to end.

    The caller may then remove the files that the thread was writing.
    """
    context = contextvars.copy_context()
    task = asyncio.get_running_loop().run_in_executor(_threads, partial(context.run, work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop()
        await _until_done(task)
        raise


@contextmanager
def disk_full_in(folder: Path) -> Iterator[None]:
    """Raise DiskFull instead of the OSErrors ENOSPC and EDQUOT."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull(f"no room left in {folder}: free some space or move the data folder") from error


async def _until_done(task: asyncio.Future[T]) -> None:
    while not task.done():
        with suppress(asyncio.CancelledError):  # a second cancellation must not end the wait
            await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # marked as retrieved, so asyncio does not report it


def _uploads(data_dir: Path) -> Path:
    return DataDir(data_dir).uploads


def _make_folder(data_dir: Path) -> tuple[Path, int]:
    uploads = _uploads(data_dir)
    try:
        with disk_full_in(data_dir):
            uploads.mkdir(mode=0o700, parents=True, exist_ok=True)
            return make_owned(uploads)
    except OSError as error:
        message = f"cannot write to {uploads}: {error.strerror}; make it writable or choose another with --data-dir"
        raise DataFolderError(message) from error


def _remove_folder(folder: Path, lock: int) -> None:
    try:
        shutil.rmtree(folder)
    finally:
        os.close(lock)


def _write(descriptor: int, data: bytearray, path: Path) -> None:
    with disk_full_in(path.parent), memoryview(data) as view:
        at = 0
        while at < len(view):
            at += os.write(descriptor, view[at:])
