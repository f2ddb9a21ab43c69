"""Blobs: bytes by name, in a local folder or in an object store (S3, Google Cloud Storage, Azure), over `obstore`.

Names are belljar's own, never a guest's or a caller's. A blob is there whole or not at all: a put that fails leaves
nothing that a reader could see.
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

#: One part of a name. Narrow on purpose: every store takes it as it is, and `#`, by which the local store marks what is
#: being written, is not in it.
_PART = re.compile(r"[A-Za-z0-9._=+@-]{1,200}\Z")
_MAX_NAME = 512
#: What `stream` hands out at once: at least the first (but for the last chunk), at most the second.
_MIN_CHUNK_BYTES = 64 * 1024
_MAX_CHUNK_BYTES = 256 * 1024
#: The local store writes `NAME#N` and renames it; what a killed process left of it is removed when it is this old.
_STAGED = re.compile(r".+#\d+\Z")
_STAGED_MAX_AGE_SECONDS = 3600
#: Linux's ENOSPC and EDQUOT, as the store's library spells them in its messages.
_FULL = ("os error 28)", "os error 122)")


#: Entries of a page of a listing.
_PAGE = 500
#: Requests to an object store at once, of one caller.
_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """What a listing tells of a blob; the time is the store's."""

    name: str
    size_bytes: int
    modified_at: datetime


class Blobs:
    """Bytes by name. `folder` is the local folder of a LocalStore, None for any other store."""

    def __init__(self, store: ObjectStore, folder: Path | None = None) -> None:
        self._store = store
        self._folder = folder

    async def put_file(self, name: str, path: Path, *, durable: bool = False) -> None:
        """Keep a copy of the file under this name, replacing what was there.

        `durable` waits until a local folder's disk has it (fsync(2)); object stores always do. Raises DiskFull.
        """
        _check(name)
        with self._errors(name, writing=True):
            await obstore.put_async(self._store, name, path)
            if durable and self._folder is not None:
                await asyncio.to_thread(sync_file, self._folder / name)

    async def put_bytes(self, name: str, data: bytes) -> None:
        """Keep these bytes under this name, replacing what was there. Raises DiskFull."""
        _check(name)
        with self._errors(name, writing=True):
            await obstore.put_async(self._store, name, data)

    async def get_bytes(self, name: str) -> bytes:
        """The whole blob in memory: for what is known to be small. Raises NotFound."""
        _check(name)
        with self._errors(name):
            result = await obstore.get_async(self._store, name)
            return (await result.bytes_async()).to_bytes()

    async def stream(self, name: str, start: int = 0) -> AsyncGenerator[bytes, None]:
        """The blob from byte `start` on, in chunks of at most 256 KiB; nothing from its end on. Raises NotFound."""
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
        """Length in bytes; None when there is no such blob."""
        _check(name)
        try:
            with self._errors(name):
                return (await obstore.head_async(self._store, name))["size"]
        except NotFound:
            return None

    async def delete(self, name: str) -> None:
        """Remove the blob; no error when it is not there."""
        _check(name)
        try:
            with self._errors(name):
                await obstore.delete_async(self._store, name)
        except NotFound:
            return

    async def delete_prefix(self, prefix: str) -> Extent:
        """Remove all blobs below this folder of names (`jobs/ID/`; `jobs/I` does not match `jobs/ID/log`)."""
        return await self.delete_prefixes([prefix])

    async def delete_prefixes(self, prefixes: Collection[str]) -> Extent:
        """Remove all blobs below these folders of names, and the folders; returns what was removed.

        Does not hold up the event loop, however many there are. What is gone already is no error. Raises HostError;
        then some of it may be left, and calling again removes the rest.
        """
        names = [prefix.rstrip("/") for prefix in prefixes]
        for name in names:
            _check(name)
        if self._folder is not None:
            folders = [self._folder / name for name in names]
            with self._errors("blobs"):
                return await asyncio.to_thread(remove_folders, folders, self._folder)
        gate = asyncio.Semaphore(_AT_ONCE)

        async def remove(name: str) -> Extent:
            async with gate:
                return await self._delete_listed(name)

        found = await asyncio.gather(*(remove(name) for name in names))
        return Extent(sum(each.count for each in found), sum(each.size_bytes for each in found))

    async def _delete_listed(self, prefix: str) -> Extent:
        count = size_bytes = 0
        async for page in self.pages(prefix):
            await self.delete_all([info.name for info in page])
            count += len(page)
            size_bytes += sum(info.size_bytes for info in page)
        return Extent(count, size_bytes)

    async def pages(self, prefix: str) -> AsyncIterator[list[BlobInfo]]:
        """Every blob below this folder of names, a bounded page at a time, in no order. Raises HostError."""
        _check(prefix)
        with self._errors(prefix):
            async for found in obstore.list(self._store, prefix=prefix, chunk_size=_PAGE):
                yield [BlobInfo(meta["path"], meta["size"], meta["last_modified"]) for meta in found]

    async def extent(self, prefixes: Collection[str]) -> Extent:
        """How many blobs there are below these folders of names, and their bytes. Raises HostError."""
        count = size_bytes = 0
        for prefix in prefixes:
            async for page in self.pages(prefix.rstrip("/")):
                count += len(page)
                size_bytes += sum(info.size_bytes for info in page)
        return Extent(count, size_bytes)

    async def remove_empty_folders(self, min_age_seconds: float) -> int:
        """Remove folders of a local folder that hold nothing and have not changed lately; returns how many."""
        if self._folder is None:
            return 0
        with self._errors("blobs"):
            return await asyncio.to_thread(remove_empty, self._folder, time.time() - min_age_seconds)

    def local_path(self, name: str) -> Path | None:
        """The file itself when blobs are a local folder and the blob is there, else None. Not to be written to."""
        _check(name)
        if self._folder is None:
            return None
        path = self._folder / name
        return path if path.is_file() else None

    def clear_stale_puts(self) -> int:
        """Remove what killed processes left of unfinished puts in a local folder; returns how many files that were."""
        if self._folder is None:
            return 0
        oldest, removed = time.time() - _STAGED_MAX_AGE_SECONDS, 0
        for path in self._folder.rglob("*#*"):
            with suppress(FileNotFoundError):  # its put has ended meanwhile
                if _STAGED.match(path.name) and path.lstat().st_mtime < oldest:
                    path.unlink()
                    removed += 1
        return removed

    async def delete_all(self, names: list[str]) -> None:
        """Remove these blobs; those that are gone already are no error. Raises HostError."""
        for name in names:
            _check(name)
        with self._errors("blobs"):
            await self._delete_batch(names)

    async def _delete_batch(self, names: list[str]) -> None:
        try:
            await obstore.delete_async(self._store, names)
        except FileNotFoundError:  # somebody else deletes too; the rest of the batch may still be there
            for name in names:
                await self.delete(name)

    @contextmanager
    def _errors(self, name: str, *, writing: bool = False) -> Iterator[None]:
        """Turns the library's errors into belljar's. What is missing is the blob, unless it is just being written."""
        try:
            yield
        except FileNotFoundError as error:
            if not writing:
                raise _missing(name) from None
            raise self._told(error) from error
        except (BaseError, OSError) as error:
            raise self._told(error) from error

    def _told(self, error: Exception) -> BelljarError:
        text = str(error)
        if any(mark in text for mark in _FULL):
            where = self._folder or "the blob store"
            return DiskFull(f"no room left in {where}: free some space or move the data folder")
        return HostError(f"the blob store failed: {text.splitlines()[0]}; check blobs_url and the data folder")


def open_blobs(settings: StorageSettings) -> Blobs:
    """The blob store that the settings name: `blobs_url`, else the folder `blobs` of the data folder.

    Raises DataFolderError when the folder cannot be made, HostError when the URL names no store.
    """
    if settings.blobs_url is None:
        return _open_folder(settings.paths.blobs)
    if settings.blobs_url.startswith("file://"):
        return _open_folder(Path(settings.blobs_url.removeprefix("file://")))
    try:
        return Blobs(from_url(settings.blobs_url))
    except (BaseError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise HostError(f"blobs_url names no object store that can be used ({reason}); try s3://BUCKET/PATH") from error


def _open_folder(folder: Path) -> Blobs:
    private_folder(folder)
    return Blobs(LocalStore(folder, automatic_cleanup=True), folder)


def _check(name: str) -> None:
    """A name outside the rules is a bug of belljar's, so this is no BelljarError."""
    parts = name.split("/")
    if len(name) > _MAX_NAME or not all(_PART.match(part) and part not in (".", "..") for part in parts):
        raise ValueError(f"{name[:80]!r} is no name for a blob")


def _missing(name: str) -> NotFound:
    return NotFound(f"there is no blob {name}; it may have been deleted")
