"""A clone that waits in the pool, and the bucket of all clones of one image and shape."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from belljar.node.guest.connection import AgentConnection
from belljar.node.machines.protocol import Clone, NetworkSlot

#: Older demand does not count: without recent demand a bucket holds no clones.
DEMAND_SECONDS = 120.0
#: Jobs that come within this time of each other need a clone each.
_BURST_SECONDS = 0.5
#: A clone that waited this long is replaced: its state is stale.
MAX_AGE_SECONDS = 1800.0
#: Bound on the recorded demand of a bucket.
_MAX_DEMAND = 256


@dataclass(slots=True)
class WarmClone:
    """A clone whose warm-up commands have run. It belongs to the holder of `stack`: closing that ends the machine."""

    clone: Clone
    connection: AgentConnection
    stack: AsyncExitStack
    #: Host memory that it uses, in MiB.
    memory_mb: float
    #: Its network slot, still closed; `stack` releases it too. None without a network.
    slot: NetworkSlot | None = None
    since: float = field(default_factory=time.monotonic)
    death_task: asyncio.Task[object] | None = None

    @property
    def is_usable(self) -> bool:
        """Whether it is alive and not too old."""
        is_dead = self.death_task is not None and self.death_task.done()
        return not is_dead and time.monotonic() - self.since < MAX_AGE_SECONDS

    async def end(self) -> None:
        """End the machine and release everything around it. Idempotent."""
        if self.death_task is not None:
            self.death_task.cancel()
        await self.stack.aclose()


@dataclass(slots=True)
class PoolBucket:
    """The clones of one image and shape, the recent demand for them, and the function that makes more."""

    make: Callable[[], Awaitable[WarmClone | None]]
    #: Whether a pool of fixed size keeps clones even without demand.
    is_permanent: bool = False
    demand_times: deque[float] = field(default_factory=lambda: deque(maxlen=_MAX_DEMAND))
    clones: deque[WarmClone] = field(default_factory=deque)
    #: No clone is made before this time.
    not_before: float = 0.0

    def target_size(self, max_size: int) -> int:
        """Return how many clones should wait: the largest recent burst, at least one with any recent demand."""
        now = time.monotonic()
        recent = [at for at in self.demand_times if now - at < DEMAND_SECONDS]
        if not recent:
            return 0
        largest = start = 0
        for end, at in enumerate(recent):
            while at - recent[start] > _BURST_SECONDS:
                start += 1
            largest = max(largest, end - start + 1)
        return min(max_size, largest)
