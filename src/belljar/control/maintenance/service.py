"""What a maintenance service is, and what it is given."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from belljar.control.blobs.store import Blobs
from belljar.control.store.maintenance import ServiceRun
from belljar.control.store.retention import SqlRetention
from belljar.settings import Settings
from belljar.system.removal import NOTHING, Extent


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What one run removed, or would remove."""

    removed: Extent = NOTHING
    #: Things that are wrong and that no service may mend, for people.
    findings: tuple[str, ...] = ()
    #: What has been seen to up to this moment need not be looked at again.
    done_until: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What services work with. With `dry_run` they only look."""

    settings: Settings
    retention: SqlRetention
    blobs: Blobs
    dry_run: bool = False

    def before(self, days: float) -> datetime | None:
        """The moment so many days ago; None for 0 days, which stand for ever."""
        if not days:
            return None
        try:
            return datetime.now(UTC) - timedelta(days=days)
        except OverflowError:
            return None


class MaintenanceService(Protocol):
    """One kind of thing that is removed. `run` may be cancelled, or its process killed, at any point."""

    #: What it removes, as people and metrics read it.
    name: str
    #: The least time between two runs that succeeded; 0: at every round.
    every_seconds: float

    async def run(self, context: Context, record: ServiceRun) -> Result:
        """Remove what is past its period. Raises HostError, OSError; then the next run goes on where this one ended."""
        ...
