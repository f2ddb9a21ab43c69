"""The interface of a maintenance service, which removes one kind of data that is past its retention period.

Both sides have such services. A schedule runs them and keeps their records (`belljar.control.maintenance.schedule`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from belljar.system.removal import NOTHING, Extent


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceRecord:
    """The stored record of one service, over all its runs."""

    service: str
    first_run_at: datetime
    last_run_at: datetime
    last_success_at: datetime | None
    removed_count: int
    removed_bytes: int
    failures: int
    #: Why the last run failed; None when it succeeded.
    error: str | None
    #: Everything that ended before this time has been processed.
    done_until: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class MaintenanceResult:
    """The result of one run of one service."""

    #: What the run removed, or would remove.
    removed: Extent = NOTHING
    #: Problems that no service may repair, for operators.
    findings: tuple[str, ...] = ()
    #: Everything that ended before this time has been processed; None leaves the record unchanged.
    done_until: datetime | None = None


class MaintenanceService(Protocol):
    """Removes one kind of data in bounded batches. `run` may be cancelled, or its process killed, at any point."""

    #: The kind of data, as operators and metrics read it.
    name: str
    #: The shortest time between two successful runs; 0: run every time.
    interval_seconds: float

    async def run(self, record: ServiceRecord, *, dry_run: bool) -> MaintenanceResult:
        """Remove what is past its period; with `dry_run`, only count it.

        Raises HostError, OSError; the next run then continues.
        """
        ...


def cutoff(days: float) -> datetime | None:
    """Return the time that many days ago; None for 0 days, which mean keep for ever."""
    if not days:
        return None
    try:
        return datetime.now(UTC) - timedelta(days=days)
    except OverflowError:
        return None
