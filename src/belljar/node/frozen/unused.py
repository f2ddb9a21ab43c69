"""Removes the frozen machines that no sandbox and no snapshot needs any more."""

from __future__ import annotations

import asyncio

import structlog

from belljar.link.leases import NodeIdentity
from belljar.link.sandboxes import SandboxLink
from belljar.node.frozen.store import FrozenStore
from belljar.node.machines.host.threads import in_thread

log = structlog.get_logger()

_INTERVAL_SECONDS = 30.0
#: A younger one may not be known to the control plane yet.
MIN_AGE_SECONDS = 60.0


class UnusedFrozen:
    """Asks the control plane which frozen machines of this node are needed."""

    def __init__(
        self, link: SandboxLink, node: NodeIdentity, store: FrozenStore, min_age_seconds: float = MIN_AGE_SECONDS
    ) -> None:
        self._link = link
        self._node = node
        self._store = store
        self._min_age_seconds = min_age_seconds

    async def run(self) -> None:
        """Work until cancelled. Raises HostError."""
        while True:
            await self.remove()
            await asyncio.sleep(_INTERVAL_SECONDS)

    async def remove(self) -> int:
        """Remove what is not needed; return how many that were. Raises HostError."""
        ids = await in_thread(self._store.ids, self._min_age_seconds)
        unused = set(ids) - await self._link.frozen_in_use(self._node, ids) if ids else set()
        if unused:
            await in_thread(self._store.remove, unused)
            log.info("frozen_removed", count=len(unused))
        return len(unused)
