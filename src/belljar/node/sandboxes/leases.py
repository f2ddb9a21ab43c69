"""The leases of the sandboxes of this node: renewed in time, and every order of the control plane passed on."""

from __future__ import annotations

import asyncio

from belljar.link.leases import NodeIdentity
from belljar.link.sandboxes import SandboxAssignment, SandboxLease, SandboxLink
from belljar.node.sandboxes.held import HeldSandbox
from belljar.system.background import report_failure

#: How long one request for orders waits.
_ORDER_WAIT_SECONDS = 10.0


class SandboxLeases:
    """Keeps the leases of what this node holds. A renewal is due every `interval_seconds`."""

    def __init__(self, link: SandboxLink, node: NodeIdentity, lease_seconds: float) -> None:
        self._link = link
        self._node = node
        self._held: dict[SandboxLease, HeldSandbox] = {}
        self._any = asyncio.Event()
        self.interval_seconds = lease_seconds / 3

    def __len__(self) -> int:
        return len(self._held)

    def add(self, assignment: SandboxAssignment, requested_at: float) -> HeldSandbox:
        """Keep the lease of a sandbox that was assigned; `requested_at` is the loop's time before the request."""
        held = HeldSandbox(assignment, requested_at)
        self._held[held.key] = held
        self._any.set()
        return held

    def remove(self, held: HeldSandbox) -> None:
        """Renew this lease no more."""
        del self._held[held.key]
        if not self._held:
            self._any.clear()

    async def keep(self) -> None:
        """Renew the leases at intervals, until cancelled: sooner after a failure."""
        is_renewed = True
        while True:
            await asyncio.sleep(self.interval_seconds if is_renewed else self.interval_seconds / 5)
            is_renewed = await self.renew()

    async def renew(self) -> bool:
        """Renew every lease, end lost ones, pass on orders; return whether the control plane answered."""
        renewing = {key: held for key, held in self._held.items() if held.lease.lost is None}
        if not renewing:
            return True
        requested_at = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self.interval_seconds):
                renewal = await self._link.renew_sandboxes(self._node, list(renewing))
        except Exception as error:  # noqa: BLE001 (each lease has its own clock, and this is tried again before that)
            report_failure("renew_sandbox_leases", error)
            return False
        for key, held in renewing.items():
            if key in renewal.lost:
                held.lose_lease()
                continue
            held.lease.renewed(requested_at, renewal.lease_seconds)
            if key in renewal.orders:
                held.obey(renewal.orders[key], requested_at)
        return True

    async def watch_orders(self) -> None:
        """Pass on orders as soon as they are given, until cancelled. Raises HostError."""
        while True:
            await self._any.wait()
            orders = await self._link.wait_for_orders(self._node, _ORDER_WAIT_SECONDS)
            answered_at = asyncio.get_running_loop().time()
            for key, order in orders.items():
                if (held := self._held.get(key)) is not None:
                    held.obey(order, answered_at)
