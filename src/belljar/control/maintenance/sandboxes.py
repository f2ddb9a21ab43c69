"""Ends sandboxes that were paused long ago, and removes old snapshots and the records of ended sandboxes."""

from __future__ import annotations

import time

import structlog

from belljar.control.maintenance.pace import Pace
from belljar.control.store.sandbox_pauses import SqlSandboxPauses
from belljar.control.store.sandbox_snapshots import SqlSandboxSnapshots
from belljar.control.store.sandboxes import SqlSandboxes
from belljar.settings.sandboxes import SandboxSettings
from belljar.system.maintenance import MaintenanceResult, ServiceRecord
from belljar.system.removal import Extent

log = structlog.get_logger()


class SandboxCleaner:
    """Ends and removes what is past its period, in batches."""

    name = "sandboxes"
    interval_seconds = 0.0

    def __init__(
        self,
        settings: SandboxSettings,
        store: SqlSandboxes,
        pauses: SqlSandboxPauses,
        snapshots: SqlSandboxSnapshots,
    ) -> None:
        self._settings = settings
        self._days = settings.keep_ended_sandboxes_days
        self._store = store
        self._pauses = pauses
        self._snapshots = snapshots
        self.pace = Pace()

    async def run(self, record: ServiceRecord, *, dry_run: bool) -> MaintenanceResult:
        """Remove them. Raises HostError."""
        if not dry_run:
            await self._release_frozen()
        if not self._days:
            return MaintenanceResult()
        if dry_run:
            return MaintenanceResult(removed=Extent(await self._store.count_ended(self._days), 0))
        removed = 0
        while True:
            rows, started = self.pace.rows, time.monotonic()
            count = await self._store.remove_ended(self._days, rows)
            removed += count
            if count < rows:
                return MaintenanceResult(removed=Extent(removed, 0))
            await self.pace.pause(time.monotonic() - started)

    async def _release_frozen(self) -> None:
        """End what was paused for too long, and remove old snapshots; their nodes remove the frozen machines."""
        settings, rows = self._settings, self.pace.rows
        if days := settings.keep_paused_sandboxes_days:
            while len(ended := await self._pauses.end_old(days, rows)) == rows:
                log.info("paused_sandboxes_ended", count=len(ended))
        if days := settings.keep_snapshots_days:
            while await self._snapshots.remove_old(days, rows) == rows:
                pass
