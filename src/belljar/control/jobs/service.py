"""Submits, lists, cancels and waits for jobs. Uses the stores by protocol, and no machine."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Protocol

import structlog

from belljar.control.audit.operation import record_nothing
from belljar.control.blobs.store import Blobs
from belljar.control.jobs.blob_names import stdin_blob
from belljar.control.jobs.changes import Changes
from belljar.control.jobs.resolve import ResolvedScript, check_arguments, resolve_job
from belljar.control.quotas.service import QuotaService, counting_refusals
from belljar.control.scripts.service import ScriptService
from belljar.model.errors import Conflict, NotFound, QuotaExceeded
from belljar.model.ids import is_job_id
from belljar.model.image import Image
from belljar.model.job import Job
from belljar.model.job_options import JobRequest
from belljar.model.quotas import NO_LIMITS, QuotaLimits
from belljar.model.resources import NodeLimits
from belljar.model.script import Script
from belljar.model.secrets import SecretUse
from belljar.model.states import Status
from belljar.settings import Settings
from belljar.settings.disk_space import disk_space_of
from belljar.system import tracing
from belljar.system.counters import increment
from belljar.system.disk_space import DiskSpace

log = structlog.get_logger()


class JobStore(Protocol):
    """Stores jobs."""

    async def insert(self, job: Job, *, needs_script: bool = False, limits: QuotaLimits = NO_LIMITS) -> Job:
        """Store a new job; return the existing one when the project has one with its idempotency key.

        `needs_script` requires that the project has the job's script, which is then kept for the job. Raises NotFound,
        QuotaExceeded for a new job beyond the limits of its project.
        """
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
        """Return a page, newest first, and the cursor of the next page."""
        ...

    async def cancel(self, project: str, job_id: str) -> Job | None:
        """Cancel a queued job, mark a running one for its worker, and return an ended one unchanged."""
        ...


class ImageNames(Protocol):
    """Knows images by name: `belljar.images.catalog.Images`."""

    def get(self, name: str) -> Image: ...

    def image_for(self, language: str) -> str: ...


class SecretChecks(Protocol):
    """Knows secrets by name: `belljar.control.secrets.service.SecretService`."""

    async def check(self, project: str, uses: Collection[SecretUse]) -> None: ...


class JobService:
    """The operations of the API on jobs."""

    def __init__(
        self,
        store: JobStore,
        scripts: ScriptService,
        images: ImageNames,
        blobs: Blobs,
        changes: Changes,
        settings: Settings,
        quotas: QuotaService,
        largest: Callable[[], Awaitable[Collection[NodeLimits]]],
        disk: DiskSpace | None = None,
        secrets: SecretChecks | None = None,
    ) -> None:
        self._store = store
        self._scripts = scripts
        self._images = images
        self._blobs = blobs
        self._changes = changes
        self._settings = settings
        self._quotas = quotas
        self._largest = largest
        self._disk = disk or disk_space_of(settings)
        self._secrets = secrets

    async def submit(self, project: str, request: JobRequest) -> Job:
        """Queue a job. The same request with the idempotency key of an earlier job returns that job.

        Raises NotFound (script), Conflict (idempotency key), QuotaExceeded, InvalidOption, SecretMissing,
        UnknownImage, UnknownLanguage, InvalidScript, DiskFull, …
        """
        fingerprint = None
        if request.idempotency_key is not None:
            fingerprint = await asyncio.to_thread(_fingerprint, request)
            first = await self._store.by_key(project, request.idempotency_key)
            if first is not None:
                record_nothing("job.submit")
                return _same_request(first, fingerprint)
        try:
            return await self._submit_new(project, request, fingerprint)
        except QuotaExceeded:
            # The same request may have been accepted meanwhile.
            first = await self._store.by_key(project, request.idempotency_key) if request.idempotency_key else None
            if first is None:
                raise
            return _same_request(first, fingerprint)

    async def _submit_new(self, project: str, request: JobRequest, fingerprint: str | None) -> Job:
        self._disk.require()
        limits = await self._quotas.check_submission(project)
        if request.image is not None:
            self._images.get(request.image)  # before anything is stored
        if request.secrets:
            assert self._secrets is not None
            await self._secrets.check(project, request.secrets)
        script = await self._script(project, request)
        name = request.image or self._images.image_for(script.language)
        image = self._images.get(name)
        check_arguments(request, image)
        runnable = ResolvedScript.from_image(script.id, script.language, script.entrypoint, script.dependencies, image)
        largest = await self._largest()
        job = resolve_job(
            request, runnable, project=project, image=name, settings=self._settings, largest=largest, limits=limits
        )
        job = job.model_copy(update={"request_sha256": fingerprint, "traceparent": tracing.current()})
        with counting_refusals():
            stored = await self._insert(job, request.stdin_bytes(), limits)
        if stored.id == job.id:
            increment("belljar_jobs_submitted")
            log.info("job_submitted", job=job.id, project=project, script=job.script_id, image=job.image)
        self._changes.notify_queued()
        return stored

    async def _insert(self, job: Job, stdin: bytes, limits: QuotaLimits) -> Job:
        """Store the job and its standard input, which is removed again when the job is not stored."""
        if stdin:
            await self._blobs.put_bytes(stdin_blob(job.id), stdin)
        try:
            stored = await self._store.insert(job, needs_script=True, limits=limits)
        except Exception:
            if stdin:
                await self._blobs.delete(stdin_blob(job.id))
            raise
        # After a cancellation it is unknown whether the job is stored: its input stays, and is an orphan if it is not.
        if stdin and stored.id != job.id:
            await self._blobs.delete(stdin_blob(job.id))
        return stored if stored.id == job.id else _same_request(stored, job.request_sha256)

    async def _script(self, project: str, request: JobRequest) -> Script:
        if request.script_id is not None:
            return await self._scripts.get(project, request.script_id)
        if request.code is not None:
            assert request.language is not None  # checked by JobRequest
            return await self._scripts.upload_code(project, request.code, request.language)
        assert request.files is not None
        return await self._scripts.upload_files(
            project, request.files, language=request.language, entrypoint=request.entrypoint
        )

    async def get(self, project: str, job_id: str) -> Job:
        """Return the project's job. Raises NotFound."""
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
        """Return a page of the project's jobs, newest first, and the cursor of the next page.

        `label` is NAME or NAME=VALUE.
        """
        return await self._store.list(
            project, status=status, script_id=script_id, label=label, limit=limit, cursor=cursor
        )

    async def cancel(self, project: str, job_id: str) -> Job:
        """Cancel the job; an ended job is returned unchanged. Raises NotFound."""
        job = await self._store.cancel(project, job_id) if is_job_id(job_id) else None
        if job is None:
            raise _missing(job_id)
        self._changes.notify(job_id)
        self._changes.notify_cancelled()
        return job

    async def wait(
        self, project: str, job_id: str, timeout_seconds: float, *, ended: Callable[[], bool] = lambda: False
    ) -> Job:
        """Return the job after its end, the timeout, or the stop of the server; or when `ended` returns True.

        `ended` returns whether the caller's key is not valid any more. Raises NotFound.
        """
        deadline = time.monotonic() + timeout_seconds
        with self._changes.watching(job_id, of_log=False) as watch:
            while True:
                job = await self.get(project, job_id)
                remaining = deadline - time.monotonic()
                if job.status.terminal or remaining <= 0 or self._changes.stopping or ended():
                    return job
                await watch.wait(remaining)


def _fingerprint(request: JobRequest) -> str:
    """Return a digest that differs for different requests with the same idempotency key."""
    excluded = {"stdin", "stdin_base64", "idempotency_key"}
    fields = request.model_dump(mode="json", exclude=excluded, exclude_defaults=True)
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    digest.update(hashlib.sha256(request.stdin_bytes()).digest())
    return digest.hexdigest()


def _same_request(first: Job, fingerprint: str | None) -> Job:
    # A job from an older version has no fingerprint.
    if first.request_sha256 is not None and first.request_sha256 != fingerprint:
        reason = f"the idempotency key belongs to another request, that of {first.id}; use a new key"
        raise Conflict(reason, job_id=first.id)
    return first


def _missing(job_id: str) -> NotFound:
    return NotFound(f"there is no job {job_id[:80]!r} in this project; list them with GET /v1/jobs or belljar jobs ls")
