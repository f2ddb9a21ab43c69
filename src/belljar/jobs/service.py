"""What callers do with jobs: submit, look at, list, cancel, wait for. Knows the stores by protocol, and no machine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Protocol

from belljar.blobs.store import Blobs
from belljar.disk_space import DiskSpace
from belljar.errors import NotFound
from belljar.images.manifest import Image
from belljar.jobs.blob_names import stdin_blob
from belljar.jobs.changes import Changes
from belljar.jobs.ids import is_job_id
from belljar.jobs.model import Job, JobRequest
from belljar.jobs.resolve import Largest, resolve_job, runnable_of
from belljar.jobs.states import Status
from belljar.scripts.model import Script
from belljar.scripts.service import ScriptService
from belljar.settings import Settings

#: How often a waiter looks by itself, for changes that another process wrote.
LOOK_SECONDS = 0.5


class JobStore(Protocol):
    """Where jobs are kept."""

    async def insert(self, job: Job) -> Job:
        """Keep a new job; when the project has one with its idempotency key, that one is returned instead."""
        ...

    async def get(self, project: str | None, job_id: str) -> Job | None: ...

    async def by_key(self, project: str, idempotency_key: str) -> Job | None: ...

    async def list(
        self,
        project: str | None,
        *,
        status: Status | None,
        script_id: str | None,
        label: str | None,
        limit: int,
        cursor: str | None,
    ) -> tuple[list[Job], str | None]:
        """The newest first, and the cursor of the next page."""
        ...

    async def cancel(self, project: str, job_id: str) -> Job | None:
        """`queued` becomes `cancelled`; what has begun is marked for its worker; what has ended stays as it is."""
        ...


class ImageNames(Protocol):
    """What knows images by name: `belljar.images.catalog.Images`."""

    def get(self, name: str) -> Image: ...

    def image_for(self, language: str) -> str: ...


class JobService:
    """What the API does with jobs."""

    def __init__(
        self,
        store: JobStore,
        scripts: ScriptService,
        images: ImageNames,
        blobs: Blobs,
        changes: Changes,
        settings: Settings,
        largest: Callable[[], Awaitable[Collection[Largest]]],
        disk: DiskSpace | None = None,
    ) -> None:
        self._store = store
        self._scripts = scripts
        self._images = images
        self._blobs = blobs
        self._changes = changes
        self._settings = settings
        self._largest = largest
        self._disk = disk or DiskSpace(settings)

    async def submit(self, project: str, request: JobRequest) -> Job:
        """Queue a job. Raises NotFound (script), InvalidOption, UnknownImage, InvalidScript, DiskFull, …"""
        options = request.options()
        if options.idempotency_key is not None:
            first = await self._store.by_key(project, options.idempotency_key)
            if first is not None:
                return first
        self._disk.require()
        if options.image is not None:
            self._images.get(options.image)  # before anything is kept
        script = await self._script(project, request)
        name = options.image or self._images.image_for(script.language)
        image = self._images.get(name)
        runnable = runnable_of(script.id, script.language, script.entrypoint, script.dependencies, image)
        largest = await self._largest()
        job = resolve_job(options, runnable, project=project, image=name, settings=self._settings, largest=largest)
        if job.stdin_bytes:
            await self._blobs.put_bytes(stdin_blob(job.id), options.stdin_bytes())
        kept = await self._store.insert(job)
        if kept.id != job.id and job.stdin_bytes:
            await self._blobs.delete(stdin_blob(job.id))
        self._changes.notify_queued()
        return kept

    async def _script(self, project: str, request: JobRequest) -> Script:
        if request.script_id is not None:
            return await self._scripts.get(project, request.script_id)
        if request.code is not None:
            assert request.language is not None  # JobRequest has checked it
            return await self._scripts.upload_code(project, request.code, request.language)
        assert request.files is not None
        return await self._scripts.upload_files(
            project, request.files, language=request.language, entrypoint=request.entrypoint
        )

    async def get(self, project: str, job_id: str) -> Job:
        """Raises NotFound."""
        job = await self._store.get(project, job_id) if is_job_id(job_id) else None
        if job is None:
            raise _missing(job_id)
        return job

    async def list(
        self,
        project: str,
        *,
        status: Status | None = None,
        script_id: str | None = None,
        label: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> tuple[list[Job], str | None]:
        """The project's jobs, newest first, and the cursor of the next page. `label` is NAME or NAME=VALUE."""
        return await self._store.list(
            project, status=status, script_id=script_id, label=label, limit=limit, cursor=cursor
        )

    async def cancel(self, project: str, job_id: str) -> Job:
        """Stop the job wherever it is; one that has ended is returned unchanged. Raises NotFound."""
        job = await self._store.cancel(project, job_id) if is_job_id(job_id) else None
        if job is None:
            raise _missing(job_id)
        self._changes.notify(job_id)
        self._changes.notify_cancelled()
        return job

    async def wait(self, project: str, job_id: str, timeout_seconds: float) -> Job:
        """The job when it has ended, or as it is when time is up. Raises NotFound."""
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        with self._changes.watching(job_id) as changed:
            while True:
                changed.clear()
                job = await self.get(project, job_id)
                left = deadline - asyncio.get_running_loop().time()
                if job.status.terminal or left <= 0:
                    return job
                try:
                    async with asyncio.timeout(min(left, LOOK_SECONDS)):
                        await changed.wait()
                except TimeoutError:
                    continue


def _missing(job_id: str) -> NotFound:
    return NotFound(f"there is no job {job_id[:80]!r} in this project; list them with GET /v1/jobs")
