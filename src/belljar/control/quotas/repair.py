"""Recounts the counters of projects, and corrects those that are wrong, which a log event reports.

The triggers of the database leave none wrong: a difference is a bug, or somebody changed the database by hand.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import structlog

from belljar.control.store.counters import SqlCounters
from belljar.system.maintenance import MaintenanceResult, ServiceRecord
from belljar.system.removal import Extent

log = structlog.get_logger()

_PAGE = 200
#: Only the time of a project's last claim on a worker is lost with an idle counter.
_KEEP_IDLE = timedelta(days=1)


class CounterRepair:
    """Compares the counters of each project with a recount, project by project."""

    name = "counters"
    interval_seconds = 6 * 3600.0

    def __init__(self, counters: SqlCounters) -> None:
        self._counters = counters

    async def run(self, record: ServiceRecord, *, dry_run: bool) -> MaintenanceResult:
        """Correct wrong counters; with `dry_run`, only report them. Raises HostError."""
        findings, after = [], ""
        while page := await self._counters.projects(after, _PAGE):
            for project in page:
                differences = await self._counters.differences(project)
                if differences and not dry_run:
                    differences = await self._counters.repair(project)
                    for name, (was, now) in differences.items():
                        log.warning("counter_repaired", project=project, counter=name, was=was, now=now)
                findings += [
                    f"the counter {name} of the project {project} was {was} instead of {right}"
                    for name, (was, right) in differences.items()
                    if dry_run
                ]
            after = page[-1]
        removed = 0 if dry_run else await self._counters.remove_idle(datetime.now(UTC) - _KEEP_IDLE)
        return MaintenanceResult(removed=Extent(removed), findings=tuple(findings))
