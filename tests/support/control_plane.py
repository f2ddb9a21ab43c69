"""A control plane without HTTP: a real store, a folder of blobs, logs and the queue over them."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from belljar.control.blobs.store import Blobs, open_blobs
from belljar.control.flows.service import FlowService
from belljar.control.jobs.blob_names import artifact_blob, stdin_blob
from belljar.control.jobs.changes import Changes
from belljar.control.logs.log import JobLog
from belljar.control.queue.queue import Queue
from belljar.control.sandboxes.queue import SandboxQueue
from belljar.control.scripts.disks import ScriptDisks, disk_blob
from belljar.control.secrets.keys import open_keys
from belljar.control.secrets.service import SecretService
from belljar.control.store.claims import SqlClaims
from belljar.control.store.database import Database
from belljar.control.store.jobs import SqlJobs
from belljar.control.store.nodes import SqlNodes
from belljar.control.store.opening import open_database
from belljar.control.store.secrets import SqlSecrets
from belljar.control.store.usage_series import SqlUsageSeries
from belljar.images.catalog import Images
from belljar.model.job import Job
from belljar.model.log_stream import LogStream
from belljar.model.sandbox import Sandbox
from belljar.settings import Settings
from support.job_queue import queued
from support.sandboxes import new_sandbox


@dataclass
class ControlPlane:
    """The parts that a test looks at behind the link."""

    settings: Settings
    database: Database
    blobs: Blobs
    changes: Changes
    queue: Queue
    sandboxes: SandboxQueue

    @property
    def jobs(self) -> SqlJobs:
        return SqlJobs(self.database)

    @property
    def claims(self) -> SqlClaims:
        return SqlClaims(self.database)

    @property
    def nodes(self) -> SqlNodes:
        return SqlNodes(self.database)

    @property
    def secrets(self) -> SecretService:
        return SecretService(SqlSecrets(self.database), open_keys(self.settings))

    async def submit(self, *, script: bytes = b"script", stdin: bytes = b"", **fields: Any) -> Job:
        """Queue a job whose script's disk holds these bytes."""
        script_id = hashlib.sha256(script).hexdigest()
        await self.blobs.put_bytes(disk_blob(script_id), script)
        job = queued(script_id=script_id, stdin_bytes=len(stdin), **fields)
        if stdin:
            await self.blobs.put_bytes(stdin_blob(job.id), stdin)
        await self.jobs.insert(job)
        self.changes.notify_queued()
        return job

    async def create_sandbox(self, **fields: Any) -> Sandbox:
        """Queue a sandbox."""
        sandbox = await self.sandboxes.store.insert(new_sandbox(**fields))
        self.sandboxes.changes.waiting.notify()
        return sandbox

    async def sandbox(self, sandbox_id: str) -> Sandbox:
        sandbox = await self.sandboxes.store.get(None, sandbox_id)
        assert sandbox is not None
        return sandbox

    async def get(self, job_id: str) -> Job:
        job = await self.jobs.get(None, job_id)
        assert job is not None
        return job

    async def cancel(self, job_id: str) -> None:
        assert await self.jobs.cancel("mine", job_id) is not None
        self.changes.notify_cancelled()

    async def output(self, job_id: str, stream: LogStream = LogStream.STDOUT, attempt: int = 1) -> bytes:
        """Return the output of one attempt, as a reader of the API gets it."""
        log = JobLog(self.settings.data_dir, self.blobs, job_id)
        records = [record async for record in log.read()]
        return b"".join(each.data for each in records if each.stream is stream and each.attempt == attempt)

    async def artifact(self, job_id: str, number: int) -> bytes | None:
        """Return an artifact's bytes; None when it is not there."""
        name = artifact_blob(job_id, number)
        return await self.blobs.get_bytes(name) if await self.blobs.size(name) is not None else None


def open_queue(settings: Settings, database: Database, blobs: Blobs, changes: Changes) -> Queue:
    return Queue(
        settings=settings,
        claims=SqlClaims(database),
        nodes=SqlNodes(database),
        script_disks=ScriptDisks(blobs, settings.paths.script_cache),
        images=Images(settings.data_dir),
        blobs=blobs,
        changes=changes,
        secrets=SecretService(SqlSecrets(database), open_keys(settings)),
        flows=FlowService.over(database),
        usage=SqlUsageSeries(database),
    )


@asynccontextmanager
async def opened_control_plane(data_dir: Path, **fields: Any) -> AsyncIterator[ControlPlane]:
    settings = Settings(data_dir=data_dir, **fields)
    database = await open_database(settings)
    try:
        blobs, changes = open_blobs(settings), Changes()
        queue = open_queue(settings, database, blobs, changes)
        secrets = SecretService(SqlSecrets(database), open_keys(settings))
        sandboxes = SandboxQueue(database, secrets, settings.lease_seconds)
        yield ControlPlane(settings, database, blobs, changes, queue, sandboxes)
    finally:
        await database.close()
