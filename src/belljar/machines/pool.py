"""The pool: clones that wait, exercised, for jobs of their image and shape. Each is given away once or thrown away.

What is wanted of each kind follows recent demand (`auto`), or is a number (`fixed`); how much memory all may take is
bounded by a budget and by what jobs leave. Clones are made one at a time, and only while the host has a processor that
no job wants: the pool must never make a running job slower.
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

from belljar.errors import BelljarError
from belljar.guest.session import Session
from belljar.machines.protocol import Clone, NetworkSlot

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
class Waiting:
    """A clone that belongs to whoever holds `held`: closing it ends the machine."""

    clone: Clone
    session: Session
    held: AsyncExitStack
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
        """Throw it away."""
        if self.dead is not None:
            self.dead.cancel()
        await self.held.aclose()


@dataclass(slots=True)
class Kind:
    """One image and shape: what was asked for lately, what waits, and how more is made."""

    make: Callable[[], Awaitable[Waiting | None]]
    #: Whether a fixed pool keeps it even while nobody asks.
    kept: bool = False
    asked: deque[float] = field(default_factory=lambda: deque(maxlen=256))
    waiting: deque[Waiting] = field(default_factory=deque)
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


class Pool:
    """Waiting clones by kind. `run` keeps it filled until it is cancelled; then all are ended."""

    def __init__(self, *, fixed: int | None, most: int, memory_mb: int, is_busy: Callable[[], bool]) -> None:
        #: How many of each kind wait; None: as many as recent demand asks for.
        self.fixed = fixed
        self._most = most
        self._memory_mb = memory_mb
        self._is_busy = is_busy
        self._kinds: dict[str, Kind] = {}
        self._rest_until = 0.0
        self._look = asyncio.Event()

    @property
    def memory_mb(self) -> float:
        """What all waiting clones take."""
        return sum(each.memory_mb for kind in self._kinds.values() for each in kind.waiting)

    def counts(self) -> dict[str, int]:
        """How many wait, by kind."""
        return {name: len(kind.waiting) for name, kind in self._kinds.items()}

    def ask(self, name: str, make: Callable[[], Awaitable[Waiting | None]], *, keep: bool = False) -> None:
        """Note that a machine of this kind is wanted; `make` is how the pool gets more of them.

        With `keep` a fixed pool has them waiting from now on, whether jobs ask for them or not.
        """
        kind = self._kinds.setdefault(name, Kind(make))
        kind.make = make
        kind.kept = kind.kept or keep
        kind.asked.append(time.monotonic())
        self._look.set()

    async def take(self, name: str) -> Waiting | None:
        """A clone of this kind, now the caller's; None when none waits."""
        kind = self._kinds.get(name)
        while kind is not None and kind.waiting:
            waiting = kind.waiting.popleft()
            self._rest_until = time.monotonic() + _REST_SECONDS
            self._look.set()
            if waiting.usable:
                return waiting
            await waiting.end()
        return None

    async def shrink_to(self, memory_mb: float) -> None:
        """End clones, those that waited longest first, until they take no more than that: a job wants their memory."""
        while self.memory_mb > max(0.0, memory_mb):
            kind = min((each for each in self._kinds.values() if each.waiting), key=lambda each: each.waiting[0].since)
            await kind.waiting.popleft().end()

    async def drop(self, name: str) -> None:
        """End every clone of a kind: its snapshot is not good any more."""
        kind = self._kinds.pop(name, None)
        while kind is not None and kind.waiting:
            await kind.waiting.popleft().end()

    async def run(self, room_mb: Callable[[], float]) -> None:
        """Fill and thin out the pool. `room_mb`: memory that jobs leave now."""
        try:
            while True:
                self._look.clear()
                await self._end_unusable()
                await self.shrink_to(min(self._memory_mb, room_mb()))
                if not await self._make_one(min(self._memory_mb, room_mb())):
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(self._pause()):
                            await self._look.wait()
        finally:
            await asyncio.shield(self._end_all())

    def _pause(self) -> float:
        """How long until it is worth another look, if nothing happens before."""
        rest = self._rest_until - time.monotonic()
        return rest if 0 < rest < _LOOK_SECONDS else _LOOK_SECONDS

    async def _end_unusable(self) -> None:
        for kind in self._kinds.values():
            surplus = len(kind.waiting) - self._wanted(kind)
            for waiting in list(kind.waiting):
                if not waiting.usable or surplus > 0:
                    surplus -= 1
                    kind.waiting.remove(waiting)
                    await waiting.end()

    def _wanted(self, kind: Kind) -> int:
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
        except (BelljarError, OSError) as error:
            log.warning("pool_clone_failed", kind=name, error=str(error))
            waiting = None
        if waiting is None:
            kind.not_before = time.monotonic() + _TROUBLE_SECONDS
            return True
        if self._kinds.get(name) is not kind or self.memory_mb + waiting.memory_mb > memory_mb:
            kind.not_before = time.monotonic() + _TROUBLE_SECONDS
            await waiting.end()  # it is larger than was thought, or nobody wants it any more
            return True
        waiting.dead = asyncio.create_task(waiting.clone.death())
        kind.waiting.append(waiting)
        return True

    async def _end_all(self) -> None:
        for name in list(self._kinds):
            with contextlib.suppress(BelljarError):
                await self.drop(name)
