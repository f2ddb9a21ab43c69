"""What a worker does before its first claim: it removes what a killed one left, and puts its jobs right."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from belljar.node.machines.host.leftovers import clear_leftovers
from belljar.node.network.leftovers import clear_network_leftovers
from belljar.node.worker.context import WorkerContext
from belljar.node.worker.job_logs import JobLogs
from belljar.node.worker.journal import read_journal
from belljar.node.worker.package_installer import Installer
from belljar.system.background import report_failure
from belljar.system.counters import increment

log = structlog.get_logger()

_SCRATCH_MAX_AGE_SECONDS = 120


class Recovery:
    """Puts right what the last run of this worker left unfinished."""

    def __init__(self, context: WorkerContext, worker_id: str, logs: JobLogs) -> None:
        self._context = context
        self._worker_id = worker_id
        self._logs = logs

    async def clear_host(self, installer: Installer) -> None:
        """Remove leftovers of this host. What cannot be removed is told in the log and stays."""
        settings = self._context.settings
        removed = await _attempted("clear_leftovers", lambda: clear_leftovers(jails=settings.paths.jails))
        removed += await _attempted("clear_network_leftovers", lambda: asyncio.to_thread(clear_network_leftovers))
        if removed:
            log.warning("leftovers_removed", count=removed)
        await _attempted("clear_builds", lambda: _nothing(installer.clear()))
        await asyncio.to_thread(shutil.rmtree, settings.paths.artifacts, ignore_errors=True)
        await _attempted("clear_scratch", lambda: asyncio.to_thread(_clear_scratch, settings.paths.scratch))

    async def recover_jobs(self) -> None:
        """End the jobs whose scripts had ended, and give up the other attempts. May be repeated. Raises HostError.

        Their logs stay here until they are swept: a blob store that hangs keeps no worker from its first claim.
        """
        context = self._context
        held = {(job.id, job.attempt): job for job in await context.claims.held(self._worker_id)}
        for path, entry in await asyncio.to_thread(lambda: list(read_journal(context.settings.data_dir))):
            job = held.get((entry.job_id, entry.attempt)) if entry is not None else None
            if job is not None and entry is not None:
                if await context.claims.finish(self._worker_id, job, entry.outcome):
                    increment("belljar_attempts", outcome=entry.outcome.status)
                    log.warning("job_end_recovered", job=job.id, attempt=job.attempt, status=entry.outcome.status)
                context.changes.notify(job.id)
            path.unlink(missing_ok=True)
        for job in await context.claims.recover(self._worker_id):
            increment("belljar_attempts", outcome="lost")
            log.warning("job_recovered", job=job.id, status=job.status, attempt=job.attempt)
            self._logs.note_lost(job)
            context.changes.notify(job.id)
            context.changes.notify_queued()


def _clear_scratch(folder: Path) -> int:
    """Remove the scratch disks that nobody can be making any more: one has a name for a minute at most."""
    removed, before = 0, time.time() - _SCRATCH_MAX_AGE_SECONDS
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.lstat().st_mtime < before:
            path.unlink(missing_ok=True)
            removed += 1
    return removed


async def _attempted(name: str, work: Callable[[], Awaitable[int]]) -> int:
    try:
        return await work()
    except Exception as error:  # noqa: BLE001 (what is left over keeps nobody from working)
        report_failure(name, error)
        return 0


async def _nothing(work: Awaitable[None]) -> int:
    await work
    return 0
