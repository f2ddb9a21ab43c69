"""Removes jobs that ended long ago, with their logs, artifacts, standard input and labels."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from datetime import datetime

from belljar.control.blobs.store import Blobs
from belljar.control.jobs.blob_names import stdin_blob
from belljar.control.logs.log import log_path
from belljar.control.maintenance.pace import Pace
from belljar.control.store.quotas import SqlQuotas
from belljar.control.store.retention import EndedJob, SqlRetention
from belljar.model.ids import first_id
from belljar.model.states import Status
from belljar.settings import Settings
from belljar.settings.retention import RetentionSettings
from belljar.system.maintenance import MaintenanceResult, ServiceRecord, cutoff
from belljar.system.old_files import extent_of_files
from belljar.system.removal import Extent

_PAGE = 500


def job_periods(settings: RetentionSettings) -> dict[Status, float]:
    """Return how many days jobs are kept, by terminal status."""
    return {
        Status.SUCCEEDED: settings.keep_succeeded_jobs_days,
        Status.FAILED: settings.keep_failed_jobs_days,
        Status.TIMED_OUT: settings.keep_failed_jobs_days,
        Status.CANCELLED: settings.keep_cancelled_jobs_days,
        Status.LOST: settings.keep_lost_jobs_days,
    }


class JobCleaner:
    """Removes ended jobs past their period: first their rows; their ids are kept until their blobs are removed."""

    name = "jobs"
    interval_seconds = 0.0

    def __init__(
        self, settings: Settings, retention: SqlRetention, blobs: Blobs, quotas: SqlQuotas | None = None
    ) -> None:
        """`quotas` has the periods of single projects, which hold where they are shorter than those of the settings."""
        self._settings = settings
        self._retention = retention
        self._blobs = blobs
        self._quotas = quotas
        self.pace = Pace()

    async def run(self, record: ServiceRecord, *, dry_run: bool) -> MaintenanceResult:
        """Remove jobs. Raises HostError, OSError."""
        if dry_run:
            return MaintenanceResult(removed=await self._count())
        removed = Extent()
        # Finish what an earlier run left before removing more rows, so that the list of pending ids stays short.
        while pending := await self._retention.removing(_PAGE):
            removed += await self._remove_bytes(pending)
        of_all = [(None, status, before) for status, before in self._cutoffs()]
        for project, status, before in [*of_all, *await self._project_cutoffs()]:
            while True:
                batch = await self._retention.remove_ended(status, before, self.pace.rows, project)
                if not batch.job_ids:
                    break
                removed += await self._remove_bytes(batch.job_ids)
                await self.pace.pause(batch.seconds)
        return MaintenanceResult(removed=removed)

    async def _remove_bytes(self, job_ids: Collection[str]) -> Extent:
        """Remove the blobs and logs of jobs whose rows are removed, then the list's entries."""
        extent = await self._blobs.delete_prefixes([_folder(job_id) for job_id in job_ids])
        extent += await asyncio.to_thread(self._remove_logs, job_ids)
        await self._retention.removed(job_ids)
        return Extent(len(job_ids), extent.size_bytes)

    def _remove_logs(self, job_ids: Collection[str]) -> Extent:
        paths = [log_path(self._settings.data_dir, job_id) for job_id in job_ids]
        extent = extent_of_files(paths)
        for path in paths:
            path.unlink(missing_ok=True)
        return extent

    async def _count(self) -> Extent:
        extent = Extent()
        for status, before in self._cutoffs():
            after: datetime | None = None
            while page := await self._retention.ended(status, after, before, _PAGE):
                blobs = await self._blobs.extent([_folder(job.id) for job in page])
                extent += Extent(len(page), blobs.size_bytes)
                after = page[-1].finished_at
        return extent + await self._count_of_projects()

    async def _count_of_projects(self) -> Extent:
        """Count the jobs that only the shorter periods of their projects remove."""
        extent, by_settings = Extent(), dict(self._cutoffs())
        for project, status, before in await self._project_cutoffs():
            of_settings = by_settings.get(status)
            after_id = "" if of_settings is None else first_id("job", of_settings)
            while page := await self._retention.ended_of(project, status, before, after_id, _PAGE):
                blobs = await self._blobs.extent([_folder(job_id) for job_id in page])
                extent += Extent(len(page), blobs.size_bytes)
                after_id = page[-1]
        return extent

    async def _project_cutoffs(self) -> list[tuple[str, Status, datetime]]:
        """Return the cutoffs of projects with a period that is shorter than that of the settings."""
        periods = {} if self._quotas is None else await self._quotas.retentions()
        found = []
        for project, days in periods.items():
            for status, days_of_all in job_periods(self._settings).items():
                before = cutoff(days)
                if before is not None and (not days_of_all or days < days_of_all):
                    found.append((project, status, before))
        return found

    def _cutoffs(self) -> Iterator[tuple[Status, datetime]]:
        for status, days in job_periods(self._settings).items():
            before = cutoff(days)
            if before is not None:
                yield status, before


class StdinCleaner:
    """Removes the standard input of ended jobs: no attempt reads it again."""

    name = "stdin"
    interval_seconds = 0.0

    def __init__(self, settings: Settings, retention: SqlRetention, blobs: Blobs) -> None:
        self._settings = settings
        self._retention = retention
        self._blobs = blobs

    async def run(self, record: ServiceRecord, *, dry_run: bool) -> MaintenanceResult:
        """Remove the blobs. Raises HostError."""
        before = cutoff(self._settings.keep_stdin_days)
        if before is None:
            return MaintenanceResult()
        removed = Extent()
        for status in job_periods(self._settings):
            after = record.done_until
            while page := await self._retention.ended(status, after, before, _PAGE):
                removed += await self._remove([job for job in page if job.stdin_bytes], dry_run)
                after = page[-1].finished_at
        return MaintenanceResult(removed=removed, done_until=before)

    async def _remove(self, jobs: list[EndedJob], dry_run: bool) -> Extent:
        removed = Extent()
        for job in jobs:
            size = await self._blobs.size(stdin_blob(job.id))
            if size is None:
                continue
            if not dry_run:
                await self._blobs.delete(stdin_blob(job.id))
            removed += Extent(1, size)
        return removed


def _folder(job_id: str) -> str:
    return f"jobs/{job_id}"
