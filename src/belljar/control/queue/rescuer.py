"""Services that repair the queue: for jobs of nodes that died, and jobs whose image no node has any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from belljar.control.jobs.changes import Changes
from belljar.control.store.claims import SqlClaims
from belljar.control.store.nodes import SqlNodes
from belljar.model.job import Job
from belljar.system.counters import increment

log = structlog.get_logger()

#: A node that was silent for so long does not come back with its images: jobs that need them wait in vain.
_SILENT_SECONDS = 3600.0
#: A folder of images that is missing for a moment, or mounted late, costs no job that waits for one of them.
_MISSING_SECONDS = 300.0


class JobRescuer:
    """Ends the leases of silent nodes: their jobs are queued again, or lost after their last attempt.

    Nodes that could not renew their leases because the database refused get the time of a lease to do so first. It may
    run in several processes: the database lets each job be rescued once.
    """

    def __init__(
        self,
        claims: SqlClaims,
        changes: Changes,
        lease_seconds: float,
        on_expired: Callable[[str], Awaitable[None]],
    ) -> None:
        """`on_expired` is called with the id of each job whose lease was ended."""
        self._claims = claims
        self._changes = changes
        self._lease_seconds = lease_seconds
        self._on_expired = on_expired
        self._not_before = 0.0
        self.postpone()  # a process that has just started has not seen the nodes be silent

    def postpone(self) -> None:
        """Leave all leases alone for as long as one lasts: living nodes renew theirs meanwhile."""
        self._not_before = time.monotonic() + self._lease_seconds

    async def run(self) -> None:
        """Rescue jobs three times in the time of a lease, until cancelled. Raises HostError."""
        await self._claims.watch_clock()
        interval = self._lease_seconds / 3
        while True:
            slept = time.monotonic()
            await asyncio.sleep(interval)
            if time.monotonic() - slept > interval + self._lease_seconds / 3:
                self.postpone()  # this process stood still, and so may the nodes in it
            await self.rescue()

    async def rescue(self) -> list[Job]:
        """End the leases that ran out, and return their jobs. Raises HostError."""
        if time.monotonic() < self._not_before:
            return []
        try:
            async with asyncio.timeout(self._lease_seconds):
                expired = await self._claims.expire(self._lease_seconds)
        except Exception:
            self.postpone()
            raise
        for job in expired:
            increment("belljar_leases_expired")
            log.warning("lease_expired", job=job.id, status=job.status, attempt=job.attempt)
            await self._on_expired(job.id)
            self._changes.notify(job.id)
            self._changes.notify_queued()
        return expired


class MissingImageService:
    """Fails jobs that wait for an image that no node has any more."""

    def __init__(self, claims: SqlClaims, nodes: SqlNodes, changes: Changes, lease_seconds: float) -> None:
        self._claims = claims
        self._nodes = nodes
        self._changes = changes
        self._lease_seconds = lease_seconds

    async def run(self) -> None:
        """Look three times in the time of a lease, until cancelled. Raises HostError."""
        while True:
            await asyncio.sleep(self._lease_seconds / 3)
            images = await self._nodes.images(_SILENT_SECONDS, _MISSING_SECONDS)
            if images is None:
                continue
            for job in await self._claims.fail_without_image(images, waited_seconds=self._lease_seconds):
                log.warning("job_failed_without_image", job=job.id, image=job.image)
                self._changes.notify(job.id)
