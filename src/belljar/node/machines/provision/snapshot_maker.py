"""Makes missing snapshots in the background, one at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from belljar.model.errors import HostError, MachineError
from belljar.node.machines.protocol import Hypervisor, MachineSpec
from belljar.node.machines.provision.request import MachineRequest
from belljar.node.machines.provision.snapshots import Snapshots
from belljar.node.machines.provision.warm_up import WarmUp

log = structlog.get_logger()

#: A snapshot that could not be made is not tried again for this long.
_RETRY_SECONDS = 300.0
_MAX_QUEUED = 16


class SnapshotMaker:
    """A queue of snapshots to make, each once."""

    def __init__(self, snapshots: Snapshots, on_made: Callable[[str], None]) -> None:
        """`on_made` is called with the key of each snapshot from the queue that was made."""
        self._snapshots = snapshots
        self._on_made = on_made
        self._queue: asyncio.Queue[tuple[str, MachineRequest]] = asyncio.Queue(maxsize=_MAX_QUEUED)
        #: Keys that are queued or being made.
        self._pending: set[str] = set()
        self._not_before: dict[str, float] = {}

    def enqueue(self, key: str, request: MachineRequest) -> None:
        """Have the snapshot for such machines made, unless it is pending, failed lately, or the queue is full."""
        now = time.monotonic()
        self._not_before = {each: until for each, until in self._not_before.items() if until > now}
        if key in self._pending or key in self._not_before or self._queue.full():
            return
        self._pending.add(key)
        self._queue.put_nowait((key, request))

    async def make_queued(self) -> None:
        """Make the snapshots in the queue until cancelled."""
        while True:
            key, request = await self._queue.get()
            try:
                if await self.make(request.hypervisor, request.spec, request.warm_up_steps):
                    self._on_made(key)
            finally:
                self._pending.discard(key)

    async def make(self, hypervisor: Hypervisor, spec: MachineSpec, warm_up_steps: WarmUp) -> bool:
        """Make the snapshot for machines of that spec now; return False and log the reason if it cannot be made."""
        key = None
        try:
            key = self._snapshots.key(hypervisor, spec.image, spec.shape, warm_up_steps)
            return await self._snapshots.make(hypervisor, spec.image, spec.shape, warm_up_steps) is not None
        except (MachineError, HostError, OSError) as error:
            log.warning("snapshot_make_failed", image=spec.image.name, error=str(error))
            if key is not None:
                self._not_before[key] = time.monotonic() + _RETRY_SECONDS
            return False
