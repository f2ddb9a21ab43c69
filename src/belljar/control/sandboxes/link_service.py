"""The link's implementation for sandboxes, over the store: in one process with a node, or behind HTTPS.

It must never trust a node with more than its lease: every write names the lease and is refused when that is not held.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from datetime import UTC, datetime

from belljar.control.flows.service import FlowService
from belljar.control.sandboxes.changes import SandboxChanges
from belljar.control.sandboxes.machines import SandboxMachines
from belljar.control.secrets.service import SecretService
from belljar.control.store.sandbox_claims import SqlSandboxClaims
from belljar.control.store.sandbox_pauses import SqlSandboxPauses
from belljar.control.store.usage_series import SqlUsageSeries
from belljar.link.errors import LeaseLost
from belljar.link.leases import ClaimRequest, NodeIdentity
from belljar.link.sandboxes import (
    SandboxAssignment,
    SandboxLease,
    SandboxMachine,
    SandboxOrder,
    SandboxRenewal,
    SandboxStart,
)
from belljar.link.secrets import JobSecret
from belljar.model.flows import FlowReport
from belljar.model.sandbox import FrozenState, ResumeProblem, Sandbox, SandboxEnd
from belljar.model.usage_series import UsageSeries
from belljar.system.counters import increment
from belljar.system.histograms import observe

#: How often a call that waits looks at the database: another process may have written.
_LOOK_SECONDS = 1.0
_LOST = "the sandbox was given to another node, or has ended"


class SandboxLinkService:
    """A SandboxLink over this process's store. Belongs to one event loop."""

    def __init__(
        self,
        claims: SqlSandboxClaims,
        pauses: SqlSandboxPauses,
        secrets: SecretService,
        changes: SandboxChanges,
        machines: SandboxMachines,
        flows: FlowService,
        usage: SqlUsageSeries,
        lease_seconds: float,
    ) -> None:
        self._claims = claims
        self._pauses = pauses
        self._secrets = secrets
        self._changes = changes
        self._machines = machines
        self._flows = flows
        self._usage = usage
        self._lease_seconds = lease_seconds
        #: By node, how many changes of orders were reported to it.
        self._orders_seen: dict[str, int] = {}

    async def forget_sandboxes(self, node: NodeIdentity) -> int:
        lost = await self._claims.forget(node)
        self.note_changed(lost)
        return len(lost)

    def note_changed(self, changed: Collection[Sandbox]) -> None:
        """Wake the waiters of sandboxes that were taken from a node, and forget their machines."""
        for sandbox in changed:
            self._machines.drop(sandbox.id)
            self._changes.notify(sandbox.id)
        if changed:
            self._changes.waiting.notify()
            self._changes.orders.notify()

    async def claim_sandbox(
        self, node: NodeIdentity, request: ClaimRequest, wait_seconds: float
    ) -> SandboxAssignment | None:
        deadline = time.monotonic() + wait_seconds
        while True:
            count = self._changes.waiting.count
            sandbox = await self._claims.claim(node, request, self._lease_seconds)
            if sandbox is not None:
                increment("belljar_claims", kind="sandbox")
                return SandboxAssignment(
                    lease=SandboxLease(sandbox.id, sandbox.fence, node),
                    sandbox=sandbox,
                    order=_first_order(sandbox),
                    lease_seconds=self._lease_seconds,
                )
            left_seconds = deadline - time.monotonic()
            if left_seconds <= 0:
                return None
            await self._changes.waiting.wait_beyond(count, min(_LOOK_SECONDS, left_seconds))

    async def decline_sandbox(self, lease: SandboxLease) -> None:
        if (sandbox := await self._claims.decline(lease)) is not None:
            self.note_changed([sandbox])

    async def renew_sandboxes(self, node: NodeIdentity, leases: Collection[SandboxLease]) -> SandboxRenewal:
        orders = await self._claims.renew(node, [lease for lease in leases if lease.node == node], self._lease_seconds)
        lost = frozenset(leases) - orders.keys()
        for lease in lost:
            self._machines.withdraw(lease)
        return SandboxRenewal(lost=lost, orders=orders, lease_seconds=self._lease_seconds)

    async def wait_for_orders(self, node: NodeIdentity, wait_seconds: float) -> dict[SandboxLease, SandboxOrder]:
        seen = self._orders_seen.get(node.name, -1)
        self._orders_seen[node.name] = await self._changes.orders.wait_beyond(seen, wait_seconds)
        return await self._claims.orders(node)

    async def sandbox_secrets(self, lease: SandboxLease) -> tuple[JobSecret, ...]:
        sandbox = await self._claims.held(lease)
        if sandbox is None:
            raise LeaseLost(_LOST)
        if not sandbox.spec.secrets:
            return ()
        opened = await self._secrets.open(sandbox.project, sandbox.spec.secrets)
        # The fence is checked after they were read: whoever lost the lease meanwhile gets none.
        if not await self._claims.note_secrets(lease, {secret.name: secret.version for secret in opened}):
            raise LeaseLost(_LOST)
        return opened

    async def sandbox_running(self, lease: SandboxLease, start: SandboxStart, machine: SandboxMachine) -> None:
        self._machines.offer(lease, machine)  # before the status is visible: who sees it finds the machine
        try:
            written = await self._claims.running(lease, start)
        except BaseException:
            self._machines.withdraw(lease)
            raise
        if not written:
            self._machines.withdraw(lease)
            raise LeaseLost(_LOST)
        increment("belljar_sandboxes_started", source=start.machine.source)
        if start.timings.machine_ms is not None:
            seconds = max(0.0, start.timings.machine_ms / 1000)
            observe("belljar_sandbox_start_seconds", seconds, source=start.machine.source)
        self._changes.notify(lease.sandbox_id)

    async def sandbox_pausing(self, lease: SandboxLease) -> None:
        if not await self._pauses.pausing(lease):
            raise LeaseLost(_LOST)
        self._changes.notify(lease.sandbox_id)

    async def sandbox_paused(self, lease: SandboxLease, frozen: FrozenState) -> None:
        if not await self._pauses.paused(lease, frozen):
            raise LeaseLost(_LOST)
        self._machines.withdraw(lease)
        increment("belljar_sandboxes_paused")
        self._changes.notify(lease.sandbox_id)

    async def sandbox_not_resumed(self, lease: SandboxLease, problem: ResumeProblem) -> None:
        if not await self._pauses.not_resumed(lease, problem):
            raise LeaseLost(_LOST)
        self._changes.notify(lease.sandbox_id)

    async def frozen_in_use(self, node: NodeIdentity, ids: Collection[str]) -> frozenset[str]:
        return await self._pauses.in_use(ids)

    async def report_sandbox_flows(self, lease: SandboxLease, report: FlowReport) -> None:
        await self._flows.keep_of_sandbox(lease, report)

    async def put_sandbox_usage(self, lease: SandboxLease, series: UsageSeries) -> None:
        if not await self._usage.put_of_sandbox(lease, series):
            raise LeaseLost(_LOST)

    async def sandbox_ended(self, lease: SandboxLease, end: SandboxEnd) -> None:
        self._machines.withdraw(lease)
        if not await self._claims.end(lease, end):
            raise LeaseLost(_LOST)
        increment("belljar_sandboxes_ended", reason=end.reason)
        self._changes.notify(lease.sandbox_id)


def _first_order(sandbox: Sandbox) -> SandboxOrder:
    left = (sandbox.expires_at - datetime.now(UTC)).total_seconds()
    return SandboxOrder(end=sandbox.end_requested, expires_at=sandbox.expires_at, lifetime_seconds=left)
