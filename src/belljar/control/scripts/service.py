"""Scripts of projects: upload, look up, list, delete, and the disk that a machine gets.

What is stored is the packed filesystem image, once for each id, whichever project uploaded it; a project holds a record
that names it. Nothing of an upload that failed stays.
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
from belljar.model.errors import NotFound
from belljar.model.image import Language
from belljar.model.script import Script
from belljar.scripts.entrypoint import file_name
from belljar.scripts.language import named_language
from belljar.scripts.limits import UploadLimits
from belljar.scripts.pack import pack_tree
from belljar.scripts.prepare import UnpackedScript, UploadHints, unpack_files, unpack_source
from belljar.scripts.uploads import receive, upload_folder
from belljar.settings import Settings
from belljar.settings.disk_space import disk_space_of
from belljar.system.disk_space import DiskSpace


class ScriptStore(Protocol):
    """Where the records of scripts are kept."""

    async def add(self, script: Script) -> Script:
        """Keep the record; when the project has the script already, the record that is there."""
        ...

    async def get(self, project: str, script_id: str) -> Script | None: ...

    async def list(self, project: str, limit: int, cursor: str | None) -> tuple[list[Script], str | None]:
        """The newest first, and the cursor of the next page."""
        ...

    async def delete(self, project: str, script_id: str) -> bool | None:
        """Forget the record; returns whether anything still needs the script's disk, None when there was no record."""
        ...

    async def used(self, script_id: str) -> bool:
        """Whether any project still has it, or a job that has not ended runs it."""
        ...


class Languages(Protocol):
    """What knows the languages: `belljar.images.catalog.Images`."""

    def languages(self) -> Sequence[Language]: ...


class ScriptService:
    """What the API and the command line do with scripts."""

    def __init__(
        self,
        store: ScriptStore,
        blobs: Blobs,
        images: Languages,
        settings: Settings,
        disk: DiskSpace | None = None,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._images = images
        self._data_dir = settings.data_dir
        self._limits = UploadLimits.from_settings(settings)
        self._disk = disk or disk_space_of(settings)
        self._disks = ScriptDisks(blobs, settings.paths.script_cache)
        #: One at a time for each id: nobody deletes a disk between another's finding it there and naming it.
        self._changing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def upload(
        self,
        project: str,
        chunks: AsyncIterator[bytes],
        filename: str,
        *,
        language: str | None = None,
        entrypoint: str | None = None,
    ) -> Script:
        """Keep a script that streams in: one file or an archive.

        Raises TooLarge while it streams, InvalidScript, UnknownLanguage, DiskFull, MissingTool.
        """
        self._disk.require()
        hints = UploadHints(filename=filename, language=language, entrypoint=entrypoint)
        languages = self._images.languages()
        async with upload_folder(self._data_dir) as work:
            await receive(chunks, work / "upload", self._limits.max_upload_bytes)
            unpacked = await unpack_source(work / "upload", hints, languages=languages, limits=self._limits, work=work)
            return await self._keep(project, unpacked, work)

    async def upload_files(
        self,
        project: str,
        files: Mapping[str, str],
        *,
        language: str | None = None,
        entrypoint: str | None = None,
    ) -> Script:
        """Keep a script of texts by path. Raises as `upload`."""
        self._disk.require()
        hints = UploadHints(filename="", language=language, entrypoint=entrypoint)
        languages = self._images.languages()
        async with upload_folder(self._data_dir) as work:
            unpacked = await unpack_files(files, hints, languages=languages, limits=self._limits, work=work)
            return await self._keep(project, unpacked, work)

    async def upload_code(self, project: str, code: str, language: str) -> Script:
        """Keep the text of a one-file script; it is called `main` and the language's ending. Raises as `upload`."""
        name = file_name("", named_language(language, self._images.languages()))
        return await self.upload_files(project, {name: code}, language=language, entrypoint=name)

    async def get(self, project: str, script_id: str) -> Script:
        """Raises NotFound."""
        script = await self._store.get(project, script_id)
        if script is None:
            raise _missing(script_id)
        return script

    async def list(
        self, project: str, *, limit: int = 50, cursor: str | None = None
    ) -> tuple[list[Script], str | None]:
        """The project's scripts, newest first, and the cursor of the next page."""
        return await self._store.list(project, limit, cursor)

    async def delete(self, project: str, script_id: str) -> None:
        """Forget the script; its disk goes when nobody else has it. Raises NotFound."""
        async with self._changing_one(script_id):
            still_needed = await self._store.delete(project, script_id)
            if still_needed is None:
                raise _missing(script_id)
            if not still_needed:
                await self._blobs.delete(disk_blob(script_id))

    async def disk(self, script_id: str) -> Path:
        """The packed filesystem image as a local file, to be read only. Raises NotFound, DiskFull."""
        return await self._disks.disk(script_id)

    async def _keep(self, project: str, unpacked: UnpackedScript, work: Path) -> Script:
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
        async with self._changing_one(script.id):
            if not await self._blobs.size(disk_blob(script.id)):  # none, or empty after a power failure
                await self._pack(unpacked, work)
            return await self._store.add(script)

    async def _pack(self, unpacked: UnpackedScript, work: Path) -> None:
        disk = work / "script.erofs"
        await pack_tree(unpacked.tree, disk)
        await self._blobs.put_file(disk_blob(unpacked.id), disk, durable=True)

    @asynccontextmanager
    async def _changing_one(self, script_id: str) -> AsyncIterator[None]:
        async with self._changing.setdefault(script_id, asyncio.Lock()), script_lock(self._data_dir, script_id):
            yield


def _missing(script_id: str) -> NotFound:
    return NotFound(f"there is no script {script_id[:80]!r} in this project; list them with GET /v1/scripts")
