"""The leases of the sandboxes of this node: renewed in time, and every order of the control plane passed on."""

from __future__ import annotations

import asyncio

from belljar.link.leases import NodeIdentity
from belljar.link.sandboxes import SandboxAssignment, SandboxLease, SandboxLink, SandboxRenewal
from belljar.node.sandboxes.held import HeldSandbox
from belljar.node.worker.kept_leases import KeptLeases

#: How long one request for orders waits.
_ORDER_WAIT_SECONDS = 10.0


class SandboxLeases(KeptLeases[SandboxLease, HeldSandbox, SandboxRenewal]):
    """Keeps the leases of what this node holds."""

    task = "renew_sandbox_leases"

    def __init__(self, link: SandboxLink, node: NodeIdentity, lease_seconds: float) -> None:
        super().__init__(lease_seconds)
        self._link = link
        self._node = node

    def add(self, assignment: SandboxAssignment, requested_at: float) -> HeldSandbox:
        """Keep the lease of a sandbox that was assigned; `requested_at` is the loop's time before the request."""
        held = HeldSandbox(assignment, requested_at)
        self.keep_lease(held.key, held)
        return held

    def remove(self, held: HeldSandbox) -> None:
        """Renew this lease no more."""
        self.drop_lease(held.key)

    async def request(self, keys: list[SandboxLease]) -> SandboxRenewal:
        return await self._link.renew_sandboxes(self._node, keys)

    def pass_on(self, key: SandboxLease, answer: SandboxRenewal, requested_at: float) -> None:
        """Have the sandbox obey the order that came with the renewal."""
        if key in answer.orders:
            self.held[key].obey(answer.orders[key], requested_at)

    async def watch_orders(self) -> None:
        """Pass on orders as soon as they are given, until cancelled. Raises HostError."""
        while True:
            await self.any.wait()
            orders = await self._link.wait_for_orders(self._node, _ORDER_WAIT_SECONDS)
            answered_at = asyncio.get_running_loop().time()
            for key, order in orders.items():
                if (held := self.held.get(key)) is not None:
                    held.obey(order, answered_at)
