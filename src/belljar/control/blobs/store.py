"""Blobs: bytes by name, in a local folder or in an object store (S3, Google Cloud Storage, Azure), over `obstore`.

Names never come from a guest or a caller. A blob is complete or does not exist: a failed put leaves nothing that is
visible to readers.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from belljar.data_dir import private_folder
from belljar.model.errors import BelljarError, DiskFull, HostError, NotFound
from belljar.settings.storage import StorageSettings
from belljar.system.atomic_write import sync_file
from belljar.system.removal import Extent, remove_empty, remove_folders

#: One part of a name, in characters that every store accepts. The local store marks unfinished files with `#`.
_PART = re.compile(r"[A-Za-z0-9._=+@-]{1,200}\Z")
_MAX_NAME = 512
#: The sizes of chunks of `stream`; the last one may be smaller.
_MIN_CHUNK_BYTES = 64 * 1024
_MAX_CHUNK_BYTES = 256 * 1024
#: The local store writes `NAME#N` and renames it; files that a killed process left are removed at this age.
_STAGED = re.compile(r".+#\d+\Z")
_STAGED_MAX_AGE_SECONDS = 3600
#: Linux's ENOSPC and EDQUOT in messages of the store's library.
_DISK_FULL_MARKS = ("os error 28)", "os error 122)")


#: Maximum entries of a page of a listing.
_PAGE = 500
#: Maximum concurrent requests of one caller to an object store.
_MAX_REQUESTS = 8


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """A blob in a listing; the time is by the store's clock."""

    name: str
    size_bytes: int
    modified_at: datetime


class Blobs:
    """Bytes by name. `folder` is the local folder of a LocalStore, None for any other store."""

    def __init__(self, store: ObjectStore, folder: Path | None = None) -> None:
        self._store = store
        self._folder = folder

    async def put_file(self, name: str, path: Path, *, durable: bool = False) -> None:
        """Store a copy of the file under this name, replacing an existing blob.

        `durable` waits for a local folder's disk (fsync(2)); object stores always do. Raises DiskFull.
        """
        _check(name)
        with self._errors(name, writing=True):
            await obstore.put_async(self._store, name, path)
            if durable and self._folder is not None:
                await asyncio.to_thread(sync_file, self._folder / name)

    async def put_bytes(self, name: str, data: bytes) -> None:
        """Store these bytes under this name, replacing an existing blob. Raises DiskFull."""
        _check(name)
        with self._errors(name, writing=True):
            await obstore.put_async(self._store, name, data)

    async def get_bytes(self, name: str) -> bytes:
        """Return a small blob. Raises NotFound."""
        _check(name)
        with self._errors(name):
            result = await obstore.get_async(self._store, name)
            return (await result.bytes_async()).to_bytes()

    async def stream(self, name: str, start: int = 0) -> AsyncGenerator[bytes, None]:
        """Yield the blob from byte `start`, in chunks of at most 256 KiB; nothing after its end. Raises NotFound."""
        size = await self.size(name)
        if size is None:
            raise _missing(name)
        if start >= size:
            return
        with self._errors(name):
            result = await obstore.get_async(self._store, name, options={"range": {"offset": start}})
            async for chunk in result.stream(min_chunk_size=_MIN_CHUNK_BYTES):
                view = memoryview(chunk)
                for at in range(0, len(view), _MAX_CHUNK_BYTES):
                    yield bytes(view[at : at + _MAX_CHUNK_BYTES])

    async def size(self, name: str) -> int | None:
        """Return the size in bytes; None when the blob does not exist."""
        _check(name)
        try:
            with self._errors(name):
                return (await obstore.head_async(self._store, name))["size"]
        except NotFound:
            return None

    async def delete(self, name: str) -> None:
        """Remove the blob, if it exists."""
        _check(name)
        try:
            with self._errors(name):
                await obstore.delete_async(self._store, name)
        except NotFound:
            return

    async def delete_prefixes(self, prefixes: Collection[str]) -> Extent:
        """Remove all blobs below these folders of names, and the folders. Return the extent of the removed blobs.

        `jobs/ID` and `jobs/ID/` are the same; `jobs/I` does not match `jobs/ID/log`. Missing blobs are no error. Raises
        HostError; then some blobs may be left, and the next call removes them.
        """
        names = [prefix.rstrip("/") for prefix in prefixes]
        for name in names:
            _check(name)
        if self._folder is not None:
            folders = [self._folder / name for name in names]
            with self._errors("blobs"):
                return await asyncio.to_thread(remove_folders, folders, self._folder)
        slots = asyncio.Semaphore(_MAX_REQUESTS)

        async def remove(name: str) -> Extent:
            async with slots:
                return await self._delete_listed(name)

        return sum(await asyncio.gather(*(remove(name) for name in names)), Extent())

    async def _delete_listed(self, prefix: str) -> Extent:
        count = size_bytes = 0
        async for page in self.pages(prefix):
            await self.delete_all([info.name for info in page])
            count += len(page)
            size_bytes += sum(info.size_bytes for info in page)
        return Extent(count, size_bytes)

    async def pages(self, prefix: str) -> AsyncIterator[list[BlobInfo]]:
        """Yield all blobs below this folder of names in pages, unordered. Raises HostError."""
        _check(prefix)
        with self._errors(prefix):
            async for page in obstore.list(self._store, prefix=prefix, chunk_size=_PAGE):
                yield [BlobInfo(meta["path"], meta["size"], meta["last_modified"]) for meta in page]

    async def extent(self, prefixes: Collection[str]) -> Extent:
        """Return the number of blobs below these folders of names and their bytes. Raises HostError."""
        count = size_bytes = 0
        for prefix in prefixes:
            async for page in self.pages(prefix.rstrip("/")):
                count += len(page)
                size_bytes += sum(info.size_bytes for info in page)
        return Extent(count, size_bytes)

    async def remove_empty_folders(self, min_age_seconds: float) -> int:
        """Remove empty folders of a local folder that have not changed lately. Return their number."""
        if self._folder is None:
            return 0
        with self._errors("blobs"):
            return await asyncio.to_thread(remove_empty, self._folder, time.time() - min_age_seconds)

    def local_path(self, name: str) -> Path | None:
        """Return the blob's file in a local folder, for reading; None for another store or a missing blob."""
        _check(name)
        if self._folder is None:
            return None
        path = self._folder / name
        return path if path.is_file() else None

    def clear_stale_puts(self) -> int:
        """Remove the files of unfinished puts of killed processes in a local folder. Return their number."""
        if self._folder is None:
            return 0
        oldest, removed = time.time() - _STAGED_MAX_AGE_SECONDS, 0
        for path in self._folder.rglob("*#*"):
            with suppress(FileNotFoundError):  # its put has ended
                if _STAGED.match(path.name) and path.lstat().st_mtime < oldest:
                    path.unlink()
                    removed += 1
        return removed

    async def delete_all(self, names: list[str]) -> None:
        """Remove these blobs, if they exist. Raises HostError."""
        for name in names:
            _check(name)
        with self._errors("blobs"):
            await self._delete_batch(names)

    async def _delete_batch(self, names: list[str]) -> None:
        try:
            await obstore.delete_async(self._store, names)
        except FileNotFoundError:  # another process deletes too; the rest of the batch may exist
            for name in names:
                await self.delete(name)

    @contextmanager
    def _errors(self, name: str, *, writing: bool = False) -> Iterator[None]:
        """Translate the library's errors into belljar's. A missing file is a missing blob, except in a put."""
        try:
            yield
        except FileNotFoundError as error:
            if not writing:
                raise _missing(name) from None
            raise self._translate_error(error) from error
        except (BaseError, OSError) as error:
            raise self._translate_error(error) from error

    def _translate_error(self, error: Exception) -> BelljarError:
        text = str(error)
        if any(mark in text for mark in _DISK_FULL_MARKS):
            where = self._folder or "the blob store"
            return DiskFull(f"no room left in {where}: free some space or move the data folder")
        return HostError(f"the blob store failed: {text.splitlines()[0]}; check blobs_url and the data folder")


def open_blobs(settings: StorageSettings) -> Blobs:
    """Open the blob store of the settings: `blobs_url`, by default the folder `blobs` of the data folder.

    Raises DataFolderError when the folder cannot be created, HostError for an invalid URL.
    """
    if settings.blobs_url is None:
        return _open_folder(settings.paths.blobs)
    if settings.blobs_url.startswith("file://"):
        return _open_folder(Path(settings.blobs_url.removeprefix("file://")))
    try:
        return Blobs(from_url(settings.blobs_url))
    except (BaseError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise HostError(f"invalid setting blobs_url ({reason}); set a URL such as s3://BUCKET/PATH") from error


def _open_folder(folder: Path) -> Blobs:
    private_folder(folder)
    return Blobs(LocalStore(folder, automatic_cleanup=True), folder)


def _check(name: str) -> None:
    """Raise ValueError for an invalid name. It is a bug, so not a BelljarError."""
    parts = name.split("/")
    if len(name) > _MAX_NAME or not all(_PART.match(part) and part not in (".", "..") for part in parts):
        raise ValueError(f"{name[:80]!r} is an invalid name of a blob")


def _missing(name: str) -> NotFound:
    return NotFound(f"there is no blob {name}; it may have been deleted")
