"""Removes the records of sandboxes that ended long ago."""

from __future__ import annotations

import time

from belljar.control.maintenance.pace import Pace
from belljar.control.store.sandboxes import SqlSandboxes
from belljar.settings.sandboxes import SandboxSettings
from belljar.system.maintenance import MaintenanceResult, ServiceRecord
from belljar.system.removal import Extent


class SandboxCleaner:
    """Removes ended sandboxes past their period, in batches."""

    name = "sandboxes"
    interval_seconds = 0.0

    def __init__(self, settings: SandboxSettings, store: SqlSandboxes) -> None:
        self._days = settings.keep_ended_sandboxes_days
        self._store = store
        self.pace = Pace()

    async def run(self, record: ServiceRecord, *, dry_run: bool) -> MaintenanceResult:
        """Remove them. Raises HostError."""
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
