"""Removes old backups of the database."""

from __future__ import annotations

import asyncio

from belljar.control.store.opening import database_path
from belljar.settings import Settings
from belljar.system.maintenance import MaintenanceResult, ServiceRecord
from belljar.system.old_files import DAY_SECONDS, extent_of_files, modified_at, older_than, unused
from belljar.system.removal import Extent


class BackupCleaner:
    """Removes backups of the database but for the newest, and partial ones of killed processes."""

    name = "backups"
    interval_seconds = 3600.0

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def run(self, record: ServiceRecord, *, dry_run: bool) -> MaintenanceResult:
        """Remove the files. Raises OSError."""
        return MaintenanceResult(removed=await asyncio.to_thread(self._remove, dry_run))

    def _remove(self, dry_run: bool) -> Extent:
        database = database_path(self._settings)
        backups = sorted(database.parent.glob(f"{database.name}.backup-*"), key=modified_at)
        partial = [path for path in backups if path.name.endswith(".partial")]
        complete = [path for path in backups if path not in partial]
        old = older_than(partial, DAY_SECONDS) + unused(complete[:-1], self._settings.keep_backups_days)
        extent = extent_of_files(old)
        if not dry_run:
            for path in old:
                path.unlink(missing_ok=True)
        return extent
