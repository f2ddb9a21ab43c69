"""Uploads, lists and deletes the scripts of projects, and provides their disks for machines.

The packed filesystem image is stored once for each id, for all projects; each project has a record of it. A failed
upload leaves nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

from belljar.control.blobs.store import Blobs
from belljar.control.scripts.disks import ScriptDisks, disk_blob
from belljar.control.scripts.script_lock import script_lock
from belljar.model.errors import NotFound, QuotaExceeded
from belljar.model.image import Language
from belljar.model.quotas import NO_LIMITS, QuotaLimits
from belljar.model.script import Script
from belljar.scripts.entrypoint import file_name
from belljar.scripts.language import named_language
from belljar.scripts.limits import UploadLimits
from belljar.scripts.pack import pack_tree
from belljar.scripts.packed import read_packed
from belljar.scripts.prepare import UnpackedScript, UploadHints, unpack_files, unpack_source
from belljar.scripts.uploads import receive, upload_folder
from belljar.settings import Settings
from belljar.settings.disk_space import disk_space_of
from belljar.system.counters import increment
from belljar.system.disk_space import DiskSpace

#: The largest script whose text is shown.
MAX_SOURCE_BYTES = 256 * 1024


class ScriptStore(Protocol):
    """Stores the records of scripts."""

    async def add(self, script: Script, *, limits: QuotaLimits = NO_LIMITS) -> Script:
        """Store the record; return the existing one when the project has the script.

        Raises QuotaExceeded when a new script exceeds the storage of its project.
        """
        ...

    async def get(self, project: str, script_id: str) -> Script | None: ...

    async def list(self, project: str, limit: int, cursor: str | None) -> tuple[list[Script], str | None]:
        """Return a page, newest first, and the cursor of the next page."""
        ...

    async def delete(self, project: str, script_id: str) -> bool | None:
        """Delete the record. Return whether the disk is still needed; None when there was no record."""
        ...

    async def used(self, script_id: str) -> bool:
        """Return whether any project has the script, or a job that has not ended runs it."""
        ...


class StorageQuota(Protocol):
    """Knows how much a project may store: `belljar.control.quotas.service.QuotaService`."""

    async def check_storage(self, project: str, more_bytes: int = 0) -> QuotaLimits:
        """Return the limits of a project that may store so many bytes more. Raises QuotaExceeded."""
        ...


class Languages(Protocol):
    """Knows the languages: `belljar.images.catalog.Images`."""

    def languages(self) -> Sequence[Language]: ...


class ScriptService:
    """The operations of the API and the command line on scripts."""

    def __init__(
        self,
        store: ScriptStore,
        blobs: Blobs,
        images: Languages,
        settings: Settings,
        disk: DiskSpace | None = None,
        quota: StorageQuota | None = None,
    ) -> None:
        """`quota`: None for no limit."""
        self._quota = quota
        self._store = store
        self._blobs = blobs
        self._images = images
        self._data_dir = settings.data_dir
        self._limits = UploadLimits.from_settings(settings)
        self._disk = disk or disk_space_of(settings)
        #: The filesystem images as local files, for nodes.
        self.disks = ScriptDisks(blobs, settings.paths.script_cache)
        #: One change at a time for each id, so that no disk is deleted between its check and its record.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def upload(
        self,
        project: str,
        chunks: AsyncIterator[bytes],
        filename: str,
        *,
        language: str | None = None,
        entrypoint: str | None = None,
    ) -> Script:
        """Store a script that is being received: one file or an archive.

        Raises TooLarge while it streams, InvalidScript, UnknownLanguage, QuotaExceeded, DiskFull, MissingTool.
        """
        self._disk.require()
        hints = UploadHints(filename=filename, language=language, entrypoint=entrypoint)
        languages = self._images.languages()
        async with upload_folder(self._data_dir) as work:
            await receive(chunks, work / "upload", self._limits.max_upload_bytes)
            unpacked = await unpack_source(work / "upload", hints, languages=languages, limits=self._limits, work=work)
            return await self._store_script(project, unpacked, work)

    async def upload_files(
        self,
        project: str,
        files: Mapping[str, str],
        *,
        language: str | None = None,
        entrypoint: str | None = None,
    ) -> Script:
        """Store a script of texts by path. Raises like `upload`."""
        self._disk.require()
        hints = UploadHints(filename="", language=language, entrypoint=entrypoint)
        languages = self._images.languages()
        async with upload_folder(self._data_dir) as work:
            unpacked = await unpack_files(files, hints, languages=languages, limits=self._limits, work=work)
            return await self._store_script(project, unpacked, work)

    async def upload_code(self, project: str, code: str, language: str) -> Script:
        """Store a script of one file, named `main` with the language's extension. Raises like `upload`."""
        name = file_name("", named_language(language, self._images.languages()))
        return await self.upload_files(project, {name: code}, language=language, entrypoint=name)

    async def get(self, project: str, script_id: str) -> Script:
        """Return the project's record of the script. Raises NotFound."""
        script = await self._store.get(project, script_id)
        if script is None:
            raise _missing(script_id)
        return script

    async def source(self, project: str, script_id: str) -> str | None:
        """Return the text of a script of one small file; None for others, such as archives and programs.

        Raises NotFound, MissingTool, HostError.
        """
        script = await self.get(project, script_id)
        if script.file_count != 1 or script.size_bytes > MAX_SOURCE_BYTES:
            return None
        async with upload_folder(self._data_dir) as work:
            disk = await self.disks.path(script_id)
            content = await read_packed(disk, script.entrypoint, MAX_SOURCE_BYTES, work)
        try:
            return None if content is None or b"\0" in content else content.decode()
        except UnicodeDecodeError:
            return None

    async def list(
        self, project: str, *, limit: int = 50, cursor: str | None = None
    ) -> tuple[list[Script], str | None]:
        """Return a page of the project's scripts, newest first, and the cursor of the next page."""
        return await self._store.list(project, limit, cursor)

    async def delete(self, project: str, script_id: str) -> None:
        """Delete the record, and the disk unless another project or a job needs it. Raises NotFound."""
        async with self._locked(script_id):
            still_needed = await self._store.delete(project, script_id)
            if still_needed is None:
                raise _missing(script_id)
            if not still_needed:
                await self._blobs.delete(disk_blob(script_id))

    async def _store_script(self, project: str, unpacked: UnpackedScript, work: Path) -> Script:
        script = Script(
            id=unpacked.id,
            project=project,
            name=unpacked.name,
            language=unpacked.language,
            entrypoint=unpacked.entrypoint,
            size_bytes=unpacked.size_bytes,
            file_count=unpacked.file_count,
            created_at=datetime.now(UTC),
            dependencies=unpacked.dependencies,
        )
        limits = NO_LIMITS
        if self._quota is not None and await self._store.get(project, script.id) is None:
            limits = await self._quota.check_storage(project, script.size_bytes)
        async with self._locked(script.id):
            if not await self._blobs.size(disk_blob(script.id)):  # missing, or empty after a power failure
                await self._pack(unpacked, work)
            try:
                stored = await self._store.add(script, limits=limits)
            except QuotaExceeded:  # by another upload meanwhile
                if not await self._store.used(script.id):
                    await self._blobs.delete(disk_blob(script.id))
                raise
        increment("belljar_script_bytes", script.size_bytes)
        return stored

    async def _pack(self, unpacked: UnpackedScript, work: Path) -> None:
        disk = work / "script.erofs"
        await pack_tree(unpacked.tree, disk)
        await self._blobs.put_file(disk_blob(unpacked.id), disk, durable=True)

    @asynccontextmanager
    async def _locked(self, script_id: str) -> AsyncIterator[None]:
        async with self._locks.setdefault(script_id, asyncio.Lock()), script_lock(self._data_dir, script_id):
            yield


def _missing(script_id: str) -> NotFound:
    return NotFound(f"there is no script {script_id[:80]!r} in this project; list them with GET /v1/scripts")
