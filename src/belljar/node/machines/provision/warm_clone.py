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
from belljar.node.machines.provision.demand import Demand
from belljar.system.background import Backoff

#: A clone that waited this long is replaced: its state is stale.
MAX_AGE_SECONDS = 1800.0
#: Pauses of a bucket after clones that could not be made.
_RETRY_SECONDS = 5.0
_MAX_RETRY_SECONDS = 80.0


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
    demand: Demand = field(default_factory=Demand)
    clones: deque[WarmClone] = field(default_factory=deque)
    #: Clones that are being made.
    making: int = 0
    #: The most memory that one of its clones used, in MiB; None before the first.
    clone_mb: float | None = None
    #: No clone is made before this time; the pause grows with each that could not be made.
    not_before: float = 0.0
    pauses: Backoff = field(default_factory=lambda: Backoff(_RETRY_SECONDS, _MAX_RETRY_SECONDS))

    @property
    def count(self) -> int:
        """Return the clones that wait or are being made."""
        return len(self.clones) + self.making

    def pause(self) -> float:
        """Make no clone for a while; return how long."""
        seconds = self.pauses.next()
        self.not_before = time.monotonic() + seconds
        return seconds

    def remove_unusable(self, keep: int) -> list[WarmClone]:
        """Remove and return the clones that are dead or too old, and the oldest beyond `keep`."""
        usable = [clone for clone in self.clones if clone.is_usable]
        kept = usable[max(0, len(usable) - keep) :]
        removed = [clone for clone in self.clones if clone not in kept]
        self.clones = deque(kept)
        return removed
