"""Removes images without a name."""

from __future__ import annotations

import asyncio

from belljar.control.store.jobs import SqlJobs
from belljar.images.catalog import Images
from belljar.settings import Settings
from belljar.system.maintenance import MaintenanceResult, ServiceRecord
from belljar.system.removal import Extent


class ImageCleaner:
    """Removes images without a name that no queued or running job needs."""

    name = "images"
    interval_seconds = 3600.0

    def __init__(self, settings: Settings, jobs: SqlJobs) -> None:
        self._settings = settings
        self._jobs = jobs

    async def run(self, record: ServiceRecord, *, dry_run: bool) -> MaintenanceResult:
        """Remove the images. Raises HostError, OSError."""
        images = Images(self._settings.data_dir)
        unnamed = await asyncio.to_thread(images.unnamed)
        needed = await self._jobs.image_digests()
        old = [manifest for manifest in unnamed if manifest.digest not in needed]
        if not old:
            return MaintenanceResult()
        if dry_run:
            return MaintenanceResult(removed=Extent(len(old), sum(manifest.size_bytes for manifest in old)))
        return MaintenanceResult(removed=Extent(len(old), await asyncio.to_thread(images.collect, needed)))
