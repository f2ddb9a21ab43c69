"""Removes the folders of uploads whose process died."""

from __future__ import annotations

import asyncio

from belljar.scripts.uploads import clear_stale_uploads
from belljar.settings import Settings
from belljar.system.maintenance import MaintenanceResult, ServiceRecord
from belljar.system.removal import Extent


class UploadCleaner:
    """Removes folders of uploads that no process holds any more. A dry run counts none."""

    name = "uploads"
    interval_seconds = 3600.0

    def __init__(self, settings: Settings) -> None:
        self._data_dir = settings.data_dir

    async def run(self, record: ServiceRecord, *, dry_run: bool) -> MaintenanceResult:
        """Remove the folders. Raises OSError."""
        if dry_run:
            return MaintenanceResult()
        return MaintenanceResult(removed=Extent(await asyncio.to_thread(clear_stale_uploads, self._data_dir)))
