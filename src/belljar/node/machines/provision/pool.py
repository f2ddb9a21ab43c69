"""The pool: clones that wait, exercised, for jobs of their image and shape. Each is given away once or thrown away.

What is wanted of each kind follows recent demand (`auto`), or is a number (`fixed`); how much memory all may take is
bounded by a budget and by what jobs leave. Clones are made one at a time, and only while the host has a processor that
no job wants: the pool must never make a running job slower.

Everything here may be called while another call is suspended. So a clone is removed from the pool before anything is
awaited: whoever removed it owns it, and gives it away or ends it. No loop suspends while it iterates over the pool.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import structlog

from belljar.node.guest.connection import AgentConnection
from belljar.node.machines.host.shielded_stack import uninterrupted
from belljar.node.machines.protocol import Clone, NetworkSlot
from belljar.system.background import report_failure, supervise

log = structlog.get_logger()

#: Demand that is older than this is forgotten: a kind that nobody wants has no clones waiting.
DEMAND_SECONDS = 120.0
#: Jobs that come within this time of each other want a clone each.
_BURST_SECONDS = 0.5
#: A clone that waited this long is replaced: what it holds was true a while ago.
OLD_SECONDS = 1800.0
#: After a clone that could not be made.
_TROUBLE_SECONDS = 5.0
_LOOK_SECONDS = 1.0
#: After a clone was taken its job runs: starting a hypervisor in the same moment would make that one slower.
_REST_SECONDS = 0.25


@dataclass(slots=True)
class WarmClone:
    """A clone that belongs to whoever holds `held`: closing it ends the machine."""

    clone: Clone
    connection: AgentConnection
    stack: AsyncExitStack
    #: What it takes of the host's memory, in MiB.
    memory_mb: float
    #: Where it is plugged in, closed to it; `held` holds it too. None without a network.
    slot: NetworkSlot | None = None
    since: float = field(default_factory=time.monotonic)
    dead: asyncio.Task[object] | None = None

    @property
    def usable(self) -> bool:
        died = self.dead is not None and self.dead.done()
        return not died and time.monotonic() - self.since < OLD_SECONDS

    async def end(self) -> None:
        """End the machine and release what it holds. Idempotent."""
        if self.dead is not None:
            self.dead.cancel()
        await self.stack.aclose()


@dataclass(slots=True)
class PoolBucket:
    """One image and shape: what was asked for lately, what waits, and how more is made."""

    make: Callable[[], Awaitable[WarmClone | None]]
    #: Whether a fixed pool keeps it even while nobody asks.
    kept: bool = False
    asked: deque[float] = field(default_factory=lambda: deque(maxlen=256))
    waiting: deque[WarmClone] = field(default_factory=deque)
    not_before: float = 0.0

    def wanted(self, most: int) -> int:
        """How many should wait: the largest burst of late, at least one while there is any demand."""
        now = time.monotonic()
        recent = [at for at in self.asked if now - at < DEMAND_SECONDS]
        if not recent:
            return 0
        burst = start = 0
        for end, at in enumerate(recent):
            while at - recent[start] > _BURST_SECONDS:
                start += 1
            burst = max(burst, end - start + 1)
        return min(most, burst)


class WarmPool:
    """Waiting clones by kind. `run` keeps it filled until it is cancelled; then all are ended."""

    def __init__(self, *, fixed: int | None, most: int, memory_mb: int, is_busy: Callable[[], bool]) -> None:
        #: How many of each kind wait; None: as many as recent demand asks for.
        self.fixed = fixed
        self._most = most
        self._memory_mb = memory_mb
        self._is_busy = is_busy
        self._kinds: dict[str, PoolBucket] = {}
        self._rest_until = 0.0
        self._look = asyncio.Event()
        #: Who ends clones that are in the pool no more, and the memory that each takes until it is gone.
        self._ending: dict[asyncio.Task[None], float] = {}

    @property
    def memory_mb(self) -> float:
        """What all waiting clones take."""
        return sum(each.memory_mb for kind in self._kinds.values() for each in kind.waiting)

    def counts(self) -> dict[str, int]:
        """How many wait, by kind."""
        return {name: len(kind.waiting) for name, kind in self._kinds.items()}

    def ask(self, name: str, make: Callable[[], Awaitable[WarmClone | None]], *, keep: bool = False) -> None:
        """Note that a machine of this kind is wanted; `make` is how the pool gets more of them.

        With `keep` a fixed pool has them waiting from now on, whether jobs ask for them or not.
        """
        kind = self._kinds.setdefault(name, PoolBucket(make))
        kind.make = make
        kind.kept = kind.kept or keep
        kind.asked.append(time.monotonic())
        self._look.set()

    async def take(self, name: str) -> WarmClone | None:
        """A clone of this kind, now the caller's; None when none waits."""
        kind = self._kinds.get(name)
        while kind is not None and kind.waiting:
            waiting = kind.waiting.popleft()
            self._rest_until = time.monotonic() + _REST_SECONDS
            self._look.set()
            if waiting.usable:
                return waiting
            self._start_ending(waiting)
        return None

    async def shrink_to(self, memory_mb: float) -> None:
        """End clones, those that waited longest first, until they take no more than that: a job wants their memory.

        Returns when their memory is free, that of clones which others are ending too.
        """
        while self.memory_mb > max(0.0, memory_mb):
            kind = min((each for each in self._kinds.values() if each.waiting), key=lambda each: each.waiting[0].since)
            self._start_ending(kind.waiting.popleft())
        while self._ending and self.memory_mb + sum(self._ending.values()) > max(0.0, memory_mb):
            await asyncio.wait(set(self._ending), return_when=asyncio.FIRST_COMPLETED)

    async def drop(self, name: str) -> None:
        """End every clone of a kind: its snapshot is not good any more."""
        kind = self._kinds.pop(name, None)
        if kind is not None:
            self._end_waiting(kind)
            await self._all_ended()

    async def run(self, room_mb: Callable[[], float]) -> None:
        """Fill and thin out the pool until cancelled; a failure is logged, and the pool goes on after a pause.

        `room_mb`: memory that jobs leave now.
        """
        try:
            await supervise("pool", lambda: self._keep(room_mb))
        finally:
            await uninterrupted(self._end_all())

    async def _keep(self, room_mb: Callable[[], float]) -> None:
        while True:
            self._look.clear()
            self._end_unusable()
            self._forget_unwanted()
            await self.shrink_to(min(self._memory_mb, room_mb()))
            if not await self._make_one(min(self._memory_mb, room_mb())):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pause()):
                        await self._look.wait()

    def _pause(self) -> float:
        """How long until it is worth another look, if nothing happens before."""
        rest = self._rest_until - time.monotonic()
        return rest if 0 < rest < _LOOK_SECONDS else _LOOK_SECONDS

    def _end_unusable(self) -> None:
        """Remove and end what is dead or old, and what is more than wanted, oldest first."""
        for kind in self._kinds.values():
            usable = [waiting for waiting in kind.waiting if waiting.usable]
            kept = usable[max(0, len(usable) - self._wanted(kind)) :]
            ended = [waiting for waiting in kind.waiting if waiting not in kept]
            kind.waiting = deque(kept)
            for waiting in ended:
                self._start_ending(waiting)

    def _forget_unwanted(self) -> None:
        """Forget kinds that nobody wants any more: there are as many as there are shapes that jobs can ask for."""
        self._kinds = {name: kind for name, kind in self._kinds.items() if kind.kept or kind.waiting or kind.wanted(1)}

    def _end_waiting(self, kind: PoolBucket) -> None:
        while kind.waiting:
            self._start_ending(kind.waiting.popleft())

    def _start_ending(self, waiting: WarmClone) -> None:
        """End a clone that is in the pool no more. Nobody's cancellation interrupts it, and its failure is logged."""
        task = asyncio.create_task(_end(waiting))
        self._ending[task] = waiting.memory_mb
        task.add_done_callback(self._ending.pop)

    async def _all_ended(self) -> None:
        while self._ending:
            await asyncio.wait(set(self._ending))

    def _wanted(self, kind: PoolBucket) -> int:
        if self.fixed is None:
            return kind.wanted(self._most)
        return self.fixed if kind.kept or kind.wanted(1) else 0

    async def _make_one(self, memory_mb: float) -> bool:
        """Make the clone that is missed most; False when there is none to make now."""
        now = time.monotonic()
        if self._is_busy() or now < self._rest_until:
            return False
        missing = [
            (self._wanted(kind) - len(kind.waiting), name)
            for name, kind in self._kinds.items()
            if kind.not_before <= now
        ]
        lacks, name = max(missing, default=(0, ""))
        if lacks <= 0:
            return False
        kind = self._kinds[name]
        each_mb = max((each.memory_mb for each in kind.waiting), default=0.0)
        if self.memory_mb + each_mb > memory_mb or memory_mb <= 0:
            return False
        try:
            waiting = await kind.make()
        except Exception as error:  # noqa: BLE001 (one kind that cannot be made takes nothing from the others)
            report_failure("pool_clone", error, kind=name, retry_seconds=_TROUBLE_SECONDS)
            waiting = None
        if waiting is None:
            kind.not_before = time.monotonic() + _TROUBLE_SECONDS
            return True
        if self._kinds.get(name) is not kind or self.memory_mb + waiting.memory_mb > memory_mb:
            kind.not_before = time.monotonic() + _TROUBLE_SECONDS
            self._start_ending(waiting)  # it is larger than was thought, or nobody wants it any more
            await self._all_ended()
            return True
        waiting.dead = asyncio.create_task(waiting.clone.death())
        waiting.dead.add_done_callback(lambda _: self._look.set())
        kind.waiting.append(waiting)
        return True

    async def _end_all(self) -> None:
        for kind in self._kinds.values():
            self._end_waiting(kind)
        self._kinds.clear()
        await self._all_ended()


async def _end(waiting: WarmClone) -> None:
    try:
        await waiting.end()
    except Exception as error:  # noqa: BLE001 (a clone that does not end cleanly is one line in the log)
        report_failure("pool_clone_end", error, machine=waiting.clone.id)
