"""Removes jobs that ended long ago, with their logs, artifacts, standard input and labels."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from datetime import datetime
from pathlib import Path

from belljar.control.jobs.blob_names import stdin_blob
from belljar.control.logs.log import log_path
from belljar.control.maintenance.pace import Pace
from belljar.control.maintenance.service import Context, Result
from belljar.control.store.maintenance import ServiceRun
from belljar.control.store.retention import EndedJob
from belljar.model.states import Status
from belljar.settings import Settings
from belljar.system.removal import Extent

_PAGE = 500


def job_periods(settings: Settings) -> dict[Status, float]:
    """How many days jobs are kept, by how they ended."""
    return {
        Status.SUCCEEDED: settings.keep_succeeded_jobs_days,
        Status.FAILED: settings.keep_failed_jobs_days,
        Status.TIMED_OUT: settings.keep_failed_jobs_days,
        Status.CANCELLED: settings.keep_cancelled_jobs_days,
        Status.LOST: settings.keep_lost_jobs_days,
    }


class JobCleaner:
    """Ended jobs past their period: first their rows, whose ids are kept until their blobs are gone."""

    name = "jobs"
    every_seconds = 0.0

    def __init__(self) -> None:
        self.pace = Pace()

    async def run(self, context: Context, record: ServiceRun) -> Result:
        if context.dry_run:
            return Result(removed=await self._look(context))
        removed = Extent()
        # What an earlier run did not come to. Nothing new is begun before it is done: so it stays a batch or two.
        while pending := await context.retention.removing(_PAGE):
            removed += await self._remove_bytes(context, pending)
        for status, before in _cutoffs(context):
            while True:
                batch = await context.retention.remove_ended(status, before, self.pace.rows)
                if not batch.job_ids:
                    break
                removed += await self._remove_bytes(context, batch.job_ids)
                await self.pace.pause(batch.seconds)
        return Result(removed=removed)

    async def _remove_bytes(self, context: Context, job_ids: Collection[str]) -> Extent:
        """Remove the bytes of jobs whose rows are gone; then nothing is left to remember them by."""
        found = await context.blobs.delete_prefixes([_folder(job_id) for job_id in job_ids])
        paths = [log_path(context.settings.data_dir, job_id) for job_id in job_ids]
        found += await asyncio.to_thread(_unlink, paths)
        await context.retention.removed(job_ids)
        return Extent(len(job_ids), found.size_bytes)

    async def _look(self, context: Context) -> Extent:
        found = Extent()
        for status, before in _cutoffs(context):
            after: datetime | None = None
            while page := await context.retention.ended(status, after, before, _PAGE):
                blobs = await context.blobs.extent([_folder(job.id) for job in page])
                found += Extent(len(page), blobs.size_bytes)
                after = page[-1].finished_at
        return found


class StdinCleaner:
    """Standard input of jobs that have ended: no attempt reads it again."""

    name = "stdin"
    every_seconds = 0.0

    async def run(self, context: Context, record: ServiceRun) -> Result:
        before = context.before(context.settings.keep_stdin_days)
        if before is None:
            return Result()
        removed = Extent()
        for status in job_periods(context.settings):
            after = record.done_until
            while page := await context.retention.ended(status, after, before, _PAGE):
                removed += await self._remove(context, [job for job in page if job.stdin_bytes])
                after = page[-1].finished_at
        return Result(removed=removed, done_until=before)

    async def _remove(self, context: Context, jobs: list[EndedJob]) -> Extent:
        found = Extent()
        for job in jobs:
            size = await context.blobs.size(stdin_blob(job.id))
            if size is None:
                continue
            if not context.dry_run:
                await context.blobs.delete(stdin_blob(job.id))
            found += Extent(1, size)
        return found


def _cutoffs(context: Context) -> Iterator[tuple[Status, datetime]]:
    for status, days in job_periods(context.settings).items():
        before = context.before(days)
        if before is not None:
            yield status, before


def _folder(job_id: str) -> str:
    return f"jobs/{job_id}"


def _unlink(paths: list[Path]) -> Extent:
    found = Extent()
    for path in paths:
        try:
            size = path.lstat().st_size
            path.unlink()
        except FileNotFoundError:
            continue
        found += Extent(1, size)
    return found
