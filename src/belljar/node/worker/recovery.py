"""What a worker does before its first claim: it removes what a killed one left, and ends or requeues its jobs."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from belljar.link.errors import LeaseLost
from belljar.link.leases import LeaseKey, NodeIdentity
from belljar.node.machines.host.leftovers import clear_leftovers
from belljar.node.network.leftovers import clear_network_leftovers
from belljar.node.worker.context import WorkerContext
from belljar.node.worker.journal import Entry, read_journal
from belljar.node.worker.package_installer import Installer
from belljar.system.background import report_failure

log = structlog.get_logger()

_SCRATCH_MAX_AGE_SECONDS = 120


class Recovery:
    """Repairs what an earlier process of this node's worker left unfinished."""

    def __init__(self, context: WorkerContext, node: NodeIdentity) -> None:
        self._context = context
        self._node = node

    async def clear_host(self, installer: Installer) -> None:
        """Remove leftovers of this host. What cannot be removed is logged and stays."""
        settings = self._context.settings
        removed = await _attempted("clear_leftovers", lambda: clear_leftovers(jails=settings.paths.jails))
        removed += await _attempted("clear_network_leftovers", lambda: asyncio.to_thread(clear_network_leftovers))
        if removed:
            log.warning("leftovers_removed", count=removed)
        await _attempted("clear_builds", lambda: _without_count(installer.clear()))
        await asyncio.to_thread(shutil.rmtree, settings.paths.artifacts, ignore_errors=True)
        await _attempted("clear_scratch", lambda: asyncio.to_thread(_clear_scratch, settings.paths.scratch))

    async def recover_jobs(self) -> None:
        """End the jobs whose scripts had ended, and requeue the others. May be repeated. Raises HostError."""
        link = self._context.link
        leases = {(lease.job_id, lease.attempt): lease for lease in await link.register(self._node)}
        for path, entry in await asyncio.to_thread(lambda: list(read_journal(self._context.settings.data_dir))):
            lease = leases.get((entry.job_id, entry.attempt)) if entry is not None else None
            if lease is not None and entry is not None and await self._finish(lease, entry):
                del leases[(entry.job_id, entry.attempt)]
            elif entry is not None and entry.outcome.started_at is not None:
                continue  # the lease ran out while no process was here: this node may be given the job again
            path.unlink(missing_ok=True)
        for lease in leases.values():
            with contextlib.suppress(LeaseLost):
                status = await link.requeue(
                    lease, code="worker_died", reason="the worker process crashed during the attempt"
                )
                log.warning("job_recovered", job=lease.job_id, status=status, attempt=lease.attempt)

    async def _finish(self, lease: LeaseKey, entry: Entry) -> bool:
        try:
            await self._context.link.finish(lease, entry.outcome)
        except LeaseLost:
            return False
        log.warning("job_end_recovered", job=lease.job_id, attempt=lease.attempt, status=entry.outcome.status)
        return True


def _clear_scratch(folder: Path) -> int:
    """Remove the scratch disks that no process can be making any more: one has a name for a minute at most."""
    removed, before = 0, time.time() - _SCRATCH_MAX_AGE_SECONDS
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.lstat().st_mtime < before:
            path.unlink(missing_ok=True)
            removed += 1
    return removed


async def _attempted(name: str, work: Callable[[], Awaitable[int]]) -> int:
    try:
        return await work()
    except Exception as error:  # noqa: BLE001 (leftovers keep no worker from working)
        report_failure(name, error)
        return 0


async def _without_count(work: Awaitable[None]) -> int:
    await work
    return 0
