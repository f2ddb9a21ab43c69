"""Removes rows of the audit log from its front, after their retention period; the chain stays verifiable."""

from __future__ import annotations

import asyncio

from belljar.control.audit.heads import Heads
from belljar.control.maintenance.pace import Pace
from belljar.control.store.audit import SqlAudit
from belljar.settings import Settings
from belljar.system.maintenance import MaintenanceResult, ServiceRecord, cutoff
from belljar.system.removal import Extent


class AuditCleaner:
    """Removes expired rows in batches, and their heads. What will be removed is recorded in the log before."""

    name = "audit"
    interval_seconds = 24 * 3600.0

    def __init__(self, settings: Settings, store: SqlAudit) -> None:
        self._keep_days = settings.keep_audit_days
        self._heads = Heads(settings.paths.audit_heads)
        self._store = store

    async def run(self, record: ServiceRecord, *, dry_run: bool) -> MaintenanceResult:
        """Remove the rows. Raises HostError, OSError."""
        before = cutoff(self._keep_days)
        if before is None:
            return MaintenanceResult()
        if dry_run:
            return MaintenanceResult(removed=Extent(await self._store.expired(before)))
        through = await self._store.begin_prune(before)
        if not through:
            return MaintenanceResult()
        pace, total = Pace(), 0
        while True:
            count, seconds = await self._store.prune(through, pace.rows)
            if not count:
                break
            total += count
            await pace.pause(seconds)
        await asyncio.to_thread(self._heads.remove_through, through)
        return MaintenanceResult(removed=Extent(total))
