"""Stores logs whose worker did not: logs of jobs that ended elsewhere, after a crash."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path

from belljar.control.blobs.store import Blobs
from belljar.control.logs.log import keep_log, log_blob
from belljar.control.store.retention import SqlRetention
from belljar.model.ids import is_job_id
from belljar.settings import Settings
from belljar.system.maintenance import MaintenanceResult, ServiceRecord
from belljar.system.old_files import extent_of_files, older_than
from belljar.system.removal import Extent

#: The worker of a job that has just ended still stores a younger log itself.
_MIN_AGE_SECONDS = 3600.0
_PAGE = 500


class LogArchiver:
    """Copies logs below `run/logs` of ended jobs to the blob store, and removes those of jobs that do not exist."""

    name = "logs"
    interval_seconds = 600.0

    def __init__(self, settings: Settings, retention: SqlRetention, blobs: Blobs) -> None:
        self._root = settings.data_dir
        self._folder = settings.paths.logs
        self._retention = retention
        self._blobs = blobs

    async def run(self, record: ServiceRecord, *, dry_run: bool) -> MaintenanceResult:
        """Copy and remove logs. Raises HostError, OSError."""
        paths = await asyncio.to_thread(lambda: older_than(self._folder.glob("*.log"), _MIN_AGE_SECONDS))
        removed = Extent()
        for start in range(0, len(paths), _PAGE):
            removed += await self._archive(paths[start : start + _PAGE], dry_run)
        return MaintenanceResult(removed=removed)

    async def _archive(self, paths: Collection[Path], dry_run: bool) -> Extent:
        known = await self._retention.known_jobs({path.stem for path in paths if is_job_id(path.stem)})
        removed = Extent()
        for path in paths:
            status = known.get(path.stem)
            if status is None:
                removed += extent_of_files([path])
                if not dry_run:
                    path.unlink(missing_ok=True)
            elif status.terminal and not dry_run and await self._blobs.size(log_blob(path.stem)) is None:
                # A log beside a blob may be the longer one: its worker compares them.
                await keep_log(self._root, self._blobs, path.stem)
        return removed
