"""Removes records that are history: nodes without a heartbeat, and revoked keys."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from belljar.system.maintenance import MaintenanceResult, ServiceRecord, cutoff
from belljar.system.removal import Extent


class OldRecords(Protocol):
    """Counts the records from before a time; with `remove`, also removes them. Returns their number."""

    async def __call__(self, before: datetime, *, remove: bool) -> int: ...


class RecordCleaner:
    """Removes the records of one kind that are older than their period."""

    interval_seconds = 3600.0

    def __init__(self, name: str, keep_days: float, old_records: OldRecords) -> None:
        self.name = name
        self._keep_days = keep_days
        self._old_records = old_records

    async def run(self, record: ServiceRecord, *, dry_run: bool) -> MaintenanceResult:
        """Remove the records. Raises HostError."""
        before = cutoff(self._keep_days)
        if before is None:
            return MaintenanceResult()
        return MaintenanceResult(removed=Extent(await self._old_records(before, remove=not dry_run)))
