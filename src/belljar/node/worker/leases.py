"""A worker's leases: renewed in time, stopped when they are lost, and those of silent workers ended.

Each step is tried by itself: a store that refuses one of them, or a host that is out of descriptors, keeps none of the
others from being done.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import structlog

from belljar.control.store.claims import Attempt, SqlClaims
from belljar.model.job import Job
from belljar.node.worker.lease import Lease
from belljar.system.background import report_failure

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class Running:
    """One attempt that this worker works on."""

    job: Job
    lease: Lease
    cancel: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def attempt(self) -> Attempt:
        return self.job.id, self.job.attempt

    @property
    def holder(self) -> str:
        """What it holds its capacity under."""
        return f"{self.job.id}.{self.job.attempt}"


class Leases:
    """Keeps the leases of what runs here. A round is due every `interval_seconds`."""

    def __init__(
        self, claims: SqlClaims, worker_id: str, lease_seconds: float, running: Callable[[], Iterable[Running]]
    ) -> None:
        self._claims = claims
        self._worker_id = worker_id
        self._seconds = lease_seconds
        self._running = running
        self.interval_seconds = lease_seconds / 3
        # Who has just started has not seen the others be silent.
        self._expire_from = 0.0
        self._spare_others()

    async def renew(self) -> bool:
        """Renew every lease, stop what has lost its own, pass on what is to be cancelled; False when that failed."""
        wanted = {each.attempt: each for each in self._running() if each.lease.lost is None}
        if not wanted:
            return True
        asked_at = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self.interval_seconds):
                renewed = await self._claims.renew(self._worker_id, wanted, self._seconds)
        except Exception as error:  # noqa: BLE001 (each lease has its own clock, and this is tried again before that)
            report_failure("renew_leases", error)
            self._spare_others()
            return False
        for attempt, running in wanted.items():
            if attempt in renewed.lost:
                if running.lease.is_open:  # else it has just been ended by this worker itself
                    log.warning("lease_lost", job=attempt[0], attempt=attempt[1])
                running.lease.lose("the job was given to another attempt")
                continue
            running.lease.renewed(asked_at, self._seconds)
            if attempt in renewed.cancel_requested:
                running.cancel.set()
        return True

    async def expire(self) -> list[Job]:
        """End the leases of workers that were silent for longer, and return their jobs. To be called after `renew`.

        When the store has refused they are left alone for as long as a lease lasts: workers that live renew theirs
        meanwhile. Raises HostError.
        """
        if time.monotonic() < self._expire_from:
            return []
        try:
            async with asyncio.timeout(self._seconds):
                expired = await self._claims.expire(self._seconds)
        except Exception:
            self._spare_others()
            raise
        for job in expired:
            log.warning("lease_expired", job=job.id, status=job.status, attempt=job.attempt)
        return expired

    def _spare_others(self) -> None:
        """Other workers may not have been able to renew their leases either: give them the time to do it."""
        self._expire_from = time.monotonic() + self._seconds

    async def pause(self, *, renewed: bool) -> None:
        """Wait until the next round is due: sooner when leases could not be renewed."""
        await asyncio.sleep(self.interval_seconds if renewed else self.interval_seconds / 5)
