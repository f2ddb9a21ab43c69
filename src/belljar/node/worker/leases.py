"""The leases of the attempts that run on this node: renewed in time, and stopped when they are lost or cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog

from belljar.link.interface import ControlLink
from belljar.link.leases import Assignment, LeaseKey, NodeIdentity
from belljar.model.job import Job
from belljar.node.worker.lease import Lease
from belljar.system.background import report_failure

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


class Leases:
    """Keeps the leases of what runs here. A renewal is due every `interval_seconds`."""

    def __init__(self, link: ControlLink, node: NodeIdentity, lease_seconds: float) -> None:
        self._link = link
        self._node = node
        self._running: dict[LeaseKey, RunningAttempt] = {}
        self._any = asyncio.Event()
        self.interval_seconds = lease_seconds / 3

    def __len__(self) -> int:
        return len(self._running)

    def __iter__(self) -> Iterator[RunningAttempt]:
        return iter(self._running.values())

    def add(self, assignment: Assignment, requested_at: float) -> RunningAttempt:
        """Keep the lease of an attempt that was assigned; `requested_at` is the loop's time before the request."""
        running = RunningAttempt(assignment, Lease(requested_at, assignment.lease_seconds))
        self._running[running.key] = running
        self._any.set()
        return running

    def remove(self, running: RunningAttempt) -> None:
        """Renew this lease no more."""
        del self._running[running.key]
        if not self._running:
            self._any.clear()

    async def keep(self) -> None:
        """Renew the leases at intervals, until cancelled: sooner after a failure."""
        is_renewed = True
        while True:
            await asyncio.sleep(self.interval_seconds if is_renewed else self.interval_seconds / 5)
            is_renewed = await self.renew()

    async def renew(self) -> bool:
        """Renew every lease, end lost ones, pass on cancellations; return whether the control plane answered."""
        renewing = {running.key: running for running in self if running.lease.lost is None}
        if not renewing:
            return True
        requested_at = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self.interval_seconds):
                renewal = await self._link.renew(self._node, list(renewing))
        except Exception as error:  # noqa: BLE001 (each lease has its own clock, and this is tried again before that)
            report_failure("renew_leases", error)
            return False
        for key, running in renewing.items():
            if key in renewal.lost:
                running.lose_lease()
                continue
            running.lease.renewed(requested_at, renewal.lease_seconds)
            if key in renewal.cancelled:
                running.cancel.set()
        return True

    async def watch_cancellations(self) -> None:
        """Stop attempts as soon as their jobs are cancelled, until cancelled itself. Raises HostError."""
        while True:
            await self._any.wait()
            for key in await self._link.wait_for_cancellation(self._node, _CANCELLATION_WAIT_SECONDS):
                if (running := self._running.get(key)) is not None:
                    running.cancel.set()
