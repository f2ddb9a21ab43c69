"""The leases that nodes hold, as this process knows them: a check of a lease costs a query only when it may have ended.

The database has the last word: every write of a job's state is guarded there. A lease that was granted or renewed here
cannot be given to another before it runs out, unless that is done here too (`drop`), or the node itself begins anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from belljar.control.queue.attempt_log import AttemptLog
from belljar.control.store.claims import SqlClaims
from belljar.link.errors import LeaseLost
from belljar.link.leases import LeaseKey, NodeIdentity
from belljar.model.job import Job


@dataclass(slots=True, eq=False)
class HeldAttempt:
    """An attempt under a lease."""

    lease: LeaseKey
    job: Job
    log: AttemptLog
    #: Until when the lease need not be looked up, by `time.monotonic`.
    valid_until: float
    #: Bytes of each artifact, by its number.
    artifact_bytes: dict[int, int] = field(default_factory=dict)


class HeldLeases:
    """Looks up leases. One for each LinkService."""

    def __init__(self, claims: SqlClaims, lease_seconds: float, open_log: Callable[[Job], AttemptLog]) -> None:
        self._claims = claims
        self._lease_seconds = lease_seconds
        self._open_log = open_log
        self._held: dict[str, HeldAttempt] = {}

    async def grant(self, lease: LeaseKey, job: Job, since: float) -> None:
        """Note a lease that the database has given at `since` or later, by `time.monotonic`.

        Raises LeaseLost when a later attempt was noted meanwhile.
        """
        while (known := self._held.get(lease.job_id)) is not None:
            if known.lease == lease:
                known.valid_until = since + self._lease_seconds
                return
            if known.lease.attempt > lease.attempt:
                raise LeaseLost
            await self.drop(lease.job_id)
        self._held[lease.job_id] = HeldAttempt(lease, job, self._open_log(job), since + self._lease_seconds)

    def extend(self, lease: LeaseKey, since: float) -> None:
        """Note that the database has renewed a lease at `since` or later."""
        known = self._held.get(lease.job_id)
        if known is not None and known.lease == lease:
            known.valid_until = since + self._lease_seconds

    async def get(self, lease: LeaseKey) -> HeldAttempt:
        """Return the attempt that is held under the lease. Raises LeaseLost, HostError."""
        known = self._held.get(lease.job_id)
        if known is not None and known.lease == lease and time.monotonic() < known.valid_until:
            return known
        since = time.monotonic()
        job = await self._claims.held(
            lease.node.name, (lease.job_id, lease.attempt), incarnation=lease.node.incarnation
        )
        if job is None:
            await self.lose(lease)
            raise LeaseLost
        await self.grant(lease, job, since)
        return self._held[lease.job_id]

    async def lose(self, lease: LeaseKey) -> None:
        """Forget this lease, but not another one of the same job."""
        known = self._held.get(lease.job_id)
        if known is not None and known.lease == lease:
            await self.drop(lease.job_id)

    async def drop(self, job_id: str) -> None:
        """Forget whatever lease of the job is known, and close its log."""
        known = self._held.pop(job_id, None)
        if known is not None:
            await known.log.close()

    async def drop_stale(self) -> None:
        """Forget leases that ran out long ago: their nodes are gone, or served by another process."""
        before = time.monotonic() - self._lease_seconds
        for held in list(self._held.values()):
            if held.valid_until < before:
                await self.drop(held.lease.job_id)

    async def drop_earlier(self, node: NodeIdentity) -> None:
        """Forget the leases of earlier processes of the node."""
        for held in list(self._held.values()):
            if held.lease.node.name == node.name and held.lease.node != node:
                await self.drop(held.lease.job_id)
