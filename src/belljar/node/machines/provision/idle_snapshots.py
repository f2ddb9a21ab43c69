"""Releases what hypervisors keep in memory of snapshots that were not cloned for a while."""

from __future__ import annotations

import asyncio
import time

from belljar.node.machines.protocol import Hypervisor
from belljar.node.machines.provision.snapshots import Snapshots

_IDLE_SECONDS = 900.0


class IdleSnapshots:
    """The time of each snapshot's last use."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots
        self._last_uses: dict[str, tuple[float, Hypervisor]] = {}

    def record_use(self, key: str, hypervisor: Hypervisor) -> None:
        """Record that a clone of the snapshot is made now."""
        self._last_uses[key] = time.monotonic(), hypervisor

    async def release_idle(self) -> None:
        """Release idle snapshots, again and again, until cancelled."""
        while True:
            await asyncio.sleep(_IDLE_SECONDS / 10)
            for key, (used_at, hypervisor) in list(self._last_uses.items()):
                if time.monotonic() - used_at > _IDLE_SECONDS:
                    del self._last_uses[key]
                    hypervisor.release_snapshot(self._snapshots.folder / key)
