"""A data folder with a real database and blob store, and jobs that ended some time ago."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from belljar.app.maintenance import maintenance_of
from belljar.control.blobs.store import Blobs, open_blobs
from belljar.control.jobs.blob_names import artifact_blob, stdin_blob
from belljar.control.logs.log import log_blob, log_path
from belljar.control.maintenance.schedule import Maintenance, ServiceOutcome
from belljar.control.scripts.disks import disk_blob
from belljar.control.store.claims import SqlClaims
from belljar.control.store.database import Database
from belljar.control.store.jobs import SqlJobs
from belljar.control.store.opening import open_database
from belljar.control.store.scripts import SqlScripts
from belljar.data_dir import DataDir
from belljar.model.job import Job
from belljar.model.script import Script
from belljar.model.states import Status
from belljar.settings import Settings
from support.empty_database import place_empty_database
from support.job_queue import ended, queued, uploaded

SCRIPT = "a" * 64


def days_ago(days: float) -> datetime:
    return datetime.now(UTC) - timedelta(days=days)


@dataclass
class Folder:
    settings: Settings
    database: Database
    blobs: Blobs
    jobs: SqlJobs = field(init=False)
    claims: SqlClaims = field(init=False)
    scripts: SqlScripts = field(init=False)

    def __post_init__(self) -> None:
        self.jobs, self.claims = SqlJobs(self.database), SqlClaims(self.database)
        self.scripts = SqlScripts(self.database)

    @property
    def path(self) -> Path:
        return self.settings.data_dir

    def maintenance(self, **settings: Any) -> Maintenance:
        return maintenance_of(self.settings.model_copy(update=settings), self.database, self.blobs)

    async def sweep(self, *, dry_run: bool = False, **settings: Any) -> dict[str, ServiceOutcome]:
        """Run every service once, and return the outcomes by name. None may fail."""
        outcomes = {each.service: each async for each in self.maintenance(**settings).run_once(dry_run=dry_run)}
        assert not [outcome for outcome in outcomes.values() if outcome.error is not None]
        return outcomes

    async def end(self, status: Status, days: float, **fields: Any) -> Job:
        """Store a job that ended that many days ago, with a log, two artifacts and standard input."""
        job = queued(created_at=days_ago(days), stdin_bytes=5, labels={"kind": status.value}, **fields)
        await self.blobs.put_bytes(stdin_blob(job.id), b"stdin")
        await self.jobs.insert(job)
        await self.blobs.put_bytes(log_blob(job.id), b"12345678")
        for index in range(2):
            await self.blobs.put_bytes(artifact_blob(job.id, index), b"artifact")
        if status is Status.CANCELLED:
            await self.jobs.cancel(job.project, job.id)
            self.sql("UPDATE jobs SET finished_at = ? WHERE id = ?", _micros(days_ago(days)), job.id)
            return job
        claimed = await self.claims.claim("w1", vcpus=64, memory_mb=1 << 20, lease_seconds=30)
        assert claimed is not None and claimed.id == job.id
        outcome = ended(status).model_copy(update={"finished_at": days_ago(days), "started_at": days_ago(days)})
        assert await self.claims.finish("w1", claimed, outcome)
        return job

    async def script(self, script_id: str = SCRIPT, project: str = "mine", days: float = 0) -> Script:
        script = uploaded(script_id, project, created_at=days_ago(days))
        await self.blobs.put_bytes(disk_blob(script_id), b"disk")
        return await self.scripts.add(script)

    def sql(self, statement: str, *values: object) -> list[Any]:
        with sqlite3.connect(DataDir(self.path).database, timeout=15) as connection:
            return connection.execute(statement, values).fetchall()

    def bytes_of(self, job_id: str) -> list[str]:
        """Return the names of the existing files of a job."""
        top = self.path / "blobs" / "jobs" / job_id
        left = [str(path.relative_to(top.parent)) for path in top.rglob("*")] + ([job_id] if top.exists() else [])
        return left + ([str(log_path(self.path, job_id))] if log_path(self.path, job_id).exists() else [])

    async def there(self, job: Job) -> bool:
        return await self.jobs.get(None, job.id) is not None


def _micros(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000)


@asynccontextmanager
async def opened(path: Path, **settings: Any) -> AsyncIterator[Folder]:
    configured = Settings(data_dir=path, **settings)
    await place_empty_database(configured)
    database = await open_database(configured)
    try:
        yield Folder(configured, database, open_blobs(configured))
    finally:
        await database.close()
