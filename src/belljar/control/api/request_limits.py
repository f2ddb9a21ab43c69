"""What requests may hold at once, over all connections and for each key: bytes of bodies, and requests.

A body that does not fit waits a moment before it is refused; it is not read meanwhile, so that it costs nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from weakref import WeakValueDictionary

from belljar.model.errors import ServerBusy, TooManyRequests

_RETRY_SECONDS = 2
#: How long a body waits for others before it is refused.
_PATIENCE_SECONDS = 10.0


class _Pool:
    """Bytes that are shared by keys."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._used = 0
        self._used_by: Counter[str] = Counter()

    def fits(self, key_id: str, size: int, most: int) -> bool:
        """Whether there is room, of which this key may have `most` in all."""
        return self._used + size <= self._total and self._used_by[key_id] + size <= most

    def left_by_others(self, key_id: str) -> int:
        return self._total - self._used + self._used_by[key_id]

    def take(self, key_id: str, size: int) -> None:
        self._used += size
        self._used_by[key_id] += size
        if not self._used_by[key_id]:
            del self._used_by[key_id]


class BodyLease:
    """A part of the memory for bodies; released once, by whoever has no more use for the body."""

    def __init__(self, budget: BodyBudget, pool: _Pool, key_id: str, size: int) -> None:
        self._budget = budget
        self._pool = pool
        self._key_id = key_id
        self._size = size

    def release(self) -> None:
        """Give the memory back. A second time changes nothing."""
        size, self._size = self._size, 0
        if size:
            self._pool.take(self._key_id, -size)
            self._budget.wake()


class BodyBudget:
    """Bytes of request bodies that may be in memory at once; one key gets at most half of them.

    A part is for small bodies alone, and of that each key gets half of what the others leave: however many keys hold
    large or slow bodies, a small one of another key finds room.
    """

    def __init__(self, total_bytes: int, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        self._small = _Pool(total_bytes // 8)
        self._any = _Pool(total_bytes - total_bytes // 8)
        self._most_by_key = total_bytes // 2
        self._small_bytes = total_bytes // 256
        self._patience_seconds = patience_seconds
        self._waiting: set[asyncio.Event] = set()

    @asynccontextmanager
    async def lease(self, key_id: str, size: int) -> AsyncIterator[BodyLease]:
        """Hold `size` bytes until they are released or the block ends. Raises TooManyRequests, ServerBusy."""
        pool = self._pool_for(key_id, size) or await self._wait(key_id, size)
        pool.take(key_id, size)
        lease = BodyLease(self, pool, key_id, size)
        try:
            yield lease
        finally:
            lease.release()

    def wake(self) -> None:
        """Have those who wait look again: for `BodyLease`."""
        for event in self._waiting:
            event.set()

    def _pool_for(self, key_id: str, size: int) -> _Pool | None:
        if not size or self._any.fits(key_id, size, self._most_by_key):
            return self._any
        share = self._small.left_by_others(key_id) // 2
        return self._small if size <= self._small_bytes and self._small.fits(key_id, size, share) else None

    async def _wait(self, key_id: str, size: int) -> _Pool:
        released = asyncio.Event()
        self._waiting.add(released)
        try:
            async with asyncio.timeout(self._patience_seconds):
                while (pool := self._pool_for(key_id, size)) is None:
                    released.clear()
                    await released.wait()
                return pool
        except TimeoutError:
            if self._any.left_by_others(key_id) >= size:
                reason = "this key has too many large requests in flight; send fewer at once"
                raise TooManyRequests(reason, retry_after=_RETRY_SECONDS) from None
            raise ServerBusy(
                "the server has too many large requests in flight; try again", retry_after=_RETRY_SECONDS
            ) from None
        finally:
            self._waiting.discard(released)


class RequestCount:
    """Requests in flight by key: each key gets half of what the others leave, so that there is room for one more."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._all = 0
        self._count: Counter[str] = Counter()

    @contextmanager
    def counted(self, key_id: str) -> Iterator[None]:
        """Count a request while the block runs. Raises TooManyRequests."""
        most = max(1, (self._total - self._all + self._count[key_id]) // 2)
        if self._count[key_id] >= most:
            reason = f"this key has as many requests in flight as it may now ({most}); end some streams"
            raise TooManyRequests(reason, retry_after=_RETRY_SECONDS)
        self._all += 1
        self._count[key_id] += 1
        try:
            yield
        finally:
            self._all -= 1
            self._count[key_id] -= 1
            if not self._count[key_id]:
                del self._count[key_id]


class Turns:
    """Work of which some may be done at once, and of one key less: another key's has not to wait for all of it."""

    def __init__(self, most: int, most_by_key: int) -> None:
        self._all = asyncio.Semaphore(most)
        self._most_by_key = most_by_key
        self._by_key: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def turn(self, key_id: str) -> AsyncIterator[None]:
        """Wait for a turn, and have it while the block runs."""
        own = self._by_key.setdefault(key_id, asyncio.Semaphore(self._most_by_key))
        async with own, self._all:
            yield
