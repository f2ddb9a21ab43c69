"""The leases of the attempts that run on this node: renewed in time, and stopped when they are lost or cancelled."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog

from belljar.link.interface import ControlLink
from belljar.link.leases import Assignment, LeaseKey, NodeIdentity, Renewal
from belljar.model.job import Job
from belljar.node.worker.kept_leases import KeptLeases
from belljar.node.worker.lease import Lease

log = structlog.get_logger()

#: How long one request for cancellations waits.
_CANCELLATION_WAIT_SECONDS = 0.5


@dataclass(slots=True, eq=False)
class RunningAttempt:
    """One attempt that runs on this node."""

    assignment: Assignment
    lease: Lease
    cancel: asyncio.Event = field(default_factory=asyncio.Event)
    claimed_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def job(self) -> Job:
        return self.assignment.job

    @property
    def key(self) -> LeaseKey:
        return self.assignment.lease

    @property
    def holder(self) -> str:
        """The name that its capacity is held under."""
        return str(self.key)

    @property
    def ids(self) -> dict[str, object]:
        """Fields for the log."""
        return {"job": self.key.job_id, "attempt": self.key.attempt}

    def lose_lease(self) -> None:
        """Stop what is done under the lease: the control plane refused it."""
        if self.lease.is_open:  # else the attempt has just been ended by this worker itself
            log.warning("lease_lost", **self.ids)
        self.lease.lose("the job was given to another attempt")


class Leases(KeptLeases[LeaseKey, RunningAttempt, Renewal]):
    """Keeps the leases of what runs here."""

    task = "renew_leases"

    def __init__(self, link: ControlLink, node: NodeIdentity, lease_seconds: float) -> None:
        super().__init__(lease_seconds)
        self._link = link
        self._node = node

    def add(self, assignment: Assignment, requested_at: float) -> RunningAttempt:
        """Keep the lease of an attempt that was assigned; `requested_at` is the loop's time before the request."""
        running = RunningAttempt(assignment, Lease(requested_at, assignment.lease_seconds))
        self.keep_lease(running.key, running)
        return running

    def remove(self, running: RunningAttempt) -> None:
        """Renew this lease no more."""
        self.drop_lease(running.key)

    async def request(self, keys: list[LeaseKey]) -> Renewal:
        return await self._link.renew(self._node, keys)

    def pass_on(self, key: LeaseKey, answer: Renewal, requested_at: float) -> None:
        """Stop the attempt of a job that is to be cancelled."""
        if key in answer.cancelled:
            self.held[key].cancel.set()

    async def watch_cancellations(self) -> None:
        """Stop attempts as soon as their jobs are cancelled, until cancelled itself. Raises HostError."""
        while True:
            await self.any.wait()
            for key in await self._link.wait_for_cancellation(self._node, _CANCELLATION_WAIT_SECONDS):
                if (running := self.held.get(key)) is not None:
                    running.cancel.set()
