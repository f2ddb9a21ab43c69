"""Removes projects: their jobs, scripts and keys in bounded batches, then their records.

The blobs of jobs are removed by the service for jobs, which runs after this one.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from belljar.control.maintenance.pace import Pace
from belljar.control.scripts.service import ScriptService
from belljar.control.store.project_removal import PLAIN_TABLES, Batch, SqlProjectRemoval
from belljar.model.errors import NotFound
from belljar.system.maintenance import MaintenanceResult, ServiceRecord
from belljar.system.removal import Extent

#: A project's record stays for this long: an upload that began before may end later, and must find that it is removed.
KEEP_SECONDS = 2 * 3600.0
_PAGE = 200


class ProjectCleaner:
    """Removes the data of projects whose removal was requested."""

    name = "projects"
    interval_seconds = 0.0

    def __init__(self, removal: SqlProjectRemoval, scripts: ScriptService) -> None:
        self._removal = removal
        self._scripts = scripts
        self.pace = Pace()

    async def run(self, record: ServiceRecord, *, dry_run: bool) -> MaintenanceResult:
        """Remove the data. Counts rows. Raises HostError."""
        count, findings = 0, []
        for project in await self._removal.projects():
            if dry_run:
                findings.append(f"the project {project} is being removed")
                continue
            count += await self._remove(project)
        return MaintenanceResult(removed=Extent(count), findings=tuple(findings))

    async def _remove(self, project: str) -> int:
        removal = self._removal
        await self._batches(lambda limit: removal.cancel_jobs(project, limit))
        count = await self._batches(lambda limit: removal.remove_jobs(project, limit))
        count += await self._remove_scripts(project)
        for table in PLAIN_TABLES:
            count += await self._batches(functools.partial(removal.remove_rows, table, project))
        await removal.finish(project, datetime.now(UTC) - timedelta(seconds=KEEP_SECONDS))
        return count

    async def _remove_scripts(self, project: str) -> int:
        count = 0
        while page := await self._removal.scripts(project, _PAGE):
            for script_id in page:
                with contextlib.suppress(NotFound):  # deleted meanwhile
                    await self._scripts.delete(project, script_id)
                count += 1
        return count

    async def _batches(self, work: Callable[[int], Awaitable[Batch]]) -> int:
        """Repeat the work, which takes the size of a batch, until nothing is left. Return how many rows it changed."""
        count = 0
        while (batch := await work(self.pace.rows)).rows:
            count += batch.rows
            await self.pace.pause(batch.seconds)
        return count
