"""Folders in which uploads are received and extracted: one for each upload, below the data folder's `run/uploads`.

The process that uses a folder locks it (flock(2)) and removes it when the upload ends, also on failure. The kernel
drops the lock of a process that dies; `clear_stale_uploads` removes the folders without a lock.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from belljar.data_dir import DataDir
from belljar.model.errors import DataFolderError, TooLarge
from belljar.scripts.limits import MB
from belljar.system.host_errors import disk_full_errors
from belljar.system.temp_folders import LockedFolder, make_temp_folder, remove_abandoned
from belljar.system.threads import Threads

T = TypeVar("T")

_BUFFER_BYTES = 1024 * 1024
#: Separate from the event loop's default executor, because an upload may occupy a thread for seconds.
in_thread = Threads("belljar-uploads", 4).run_to_end


@asynccontextmanager
async def upload_folder(data_dir: Path) -> AsyncIterator[Path]:
    """Yield an empty folder for one upload, removed when the block ends. Raises DiskFull, DataFolderError."""
    folder = await in_thread(partial(_make_folder, data_dir), undo=LockedFolder.remove)
    try:
        yield folder.path
    finally:
        await in_thread(folder.remove)


def clear_stale_uploads(data_dir: Path) -> int:
    """Remove the upload folders of processes that died, and return their number; call it when a process starts.

    Other files there are removed too; errors are logged.
    """
    return remove_abandoned(_uploads(data_dir))


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


def _uploads(data_dir: Path) -> Path:
    return DataDir(data_dir).uploads


def _make_folder(data_dir: Path) -> LockedFolder:
    uploads = _uploads(data_dir)
    try:
        with disk_full_errors(f"receive an upload in {uploads}"):
            uploads.mkdir(mode=0o700, parents=True, exist_ok=True)
            return make_temp_folder(uploads)
    except OSError as error:
        message = f"cannot write to {uploads}: {error.strerror}; make it writable or choose another with --data-dir"
        raise DataFolderError(message) from error


def _write(descriptor: int, data: bytearray, path: Path) -> None:
    with disk_full_errors(f"store an upload in {path.parent}"), memoryview(data) as view:
        at = 0
        while at < len(view):
            at += os.write(descriptor, view[at:])
