"""Removes what killed processes left below the data folder's `run`, and puts away logs that nobody came back for."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path

from belljar.control.logs.log import keep_log, log_blob
from belljar.control.maintenance.files import older_than
from belljar.control.maintenance.service import Context, Result
from belljar.control.store.maintenance import ServiceRun
from belljar.model.ids import is_job_id
from belljar.scripts.uploads import clear_stale_uploads
from belljar.system.removal import Extent
from belljar.system.temp_folders import remove_abandoned

#: A log this old is not about to be put away by the worker whose job has just ended.
_LOG_SECONDS = 3600.0
#: Nothing of one run takes longer than this after the longest time that a job may run.
_SLACK_SECONDS = 86_400.0
_PAGE = 500


class LeftoverCleaner:
    """Folders of uploads and of runs whose process died, and files that artifacts pass through."""

    name = "leftovers"
    every_seconds = 3600.0

    async def run(self, context: Context, record: ServiceRun) -> Result:
        return Result(removed=await asyncio.to_thread(self._run, context))

    def _run(self, context: Context) -> Extent:
        paths = context.settings.paths
        seconds = context.settings.max_timeout_seconds + _SLACK_SECONDS
        files = older_than((path for path in paths.artifacts.glob("*") if path.is_file()), seconds)
        if context.dry_run:
            return Extent(len(files), sum(path.lstat().st_size for path in files))
        found = Extent(clear_stale_uploads(context.settings.data_dir) + remove_abandoned(paths.local_runs))
        for path in files:
            found += Extent(1, path.lstat().st_size)
            path.unlink(missing_ok=True)
        return found


class LogKeeper:
    """Logs below `run/logs` of jobs that have ended elsewhere become blobs; those of jobs that are gone are removed."""

    name = "logs"
    every_seconds = 600.0

    async def run(self, context: Context, record: ServiceRun) -> Result:
        folder = context.settings.paths.logs
        paths = await asyncio.to_thread(lambda: older_than(folder.glob("*.log"), _LOG_SECONDS))
        removed = Extent()
        for start in range(0, len(paths), _PAGE):
            removed += await self._see_to(context, paths[start : start + _PAGE])
        return Result(removed=removed)

    async def _see_to(self, context: Context, paths: Collection[Path]) -> Extent:
        known = await context.retention.known_jobs({path.stem for path in paths if is_job_id(path.stem)})
        removed = Extent()
        for path in paths:
            status = known.get(path.stem)
            if status is not None:
                # One that may be run again goes on. Beside a blob it may have more than that: its worker compares them.
                if status.terminal and not context.dry_run and await context.blobs.size(log_blob(path.stem)) is None:
                    await keep_log(context.settings.data_dir, context.blobs, path.stem)
                continue
            removed += Extent(1, path.stat().st_size if path.exists() else 0)
            if not context.dry_run:
                path.unlink(missing_ok=True)
        return removed
