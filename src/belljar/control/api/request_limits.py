"""Limits of what is in flight, over all connections and for each key: bytes of bodies, and requests.

A body over the limit waits for a deadline before it is refused; it is not read meanwhile, so it costs no memory.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from weakref import WeakValueDictionary

from belljar.model.errors import ServerBusy, TooManyRequests

_RETRY_SECONDS = 2
#: How long a body waits for memory before it is refused.
_WAIT_SECONDS = 10.0


class _Pool:
    """A number of bytes that keys share."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._used = 0
        self._used_by: Counter[str] = Counter()

    def fits(self, key_id: str, size: int, key_limit: int) -> bool:
        """Return whether `size` more bytes fit, with at most `key_limit` for this key."""
        return self._used + size <= self._total and self._used_by[key_id] + size <= key_limit

    def left_by_others(self, key_id: str) -> int:
        """Return the bytes that other keys do not use."""
        return self._total - self._used + self._used_by[key_id]

    def add(self, key_id: str, size: int) -> None:
        """Count `size` more bytes for this key; fewer when it is negative."""
        self._used += size
        self._used_by[key_id] += size
        if not self._used_by[key_id]:
            del self._used_by[key_id]


class BodyLease:
    """Memory that is reserved for a body, until it is released."""

    def __init__(self, budget: BodyBudget, pool: _Pool, key_id: str, size: int) -> None:
        self._budget = budget
        self._pool = pool
        self._key_id = key_id
        self._size = size

    def release(self) -> None:
        """Release the memory. A second call changes nothing."""
        size, self._size = self._size, 0
        if size:
            self._pool.add(self._key_id, -size)
            self._budget.wake()


class BodyBudget:
    """The memory for all request bodies; each key gets at most half of it.

    A part is reserved for small bodies, and each key gets half of what the others leave of it. So a small body of one
    key is accepted whatever bodies other keys send.
    """

    def __init__(self, total_bytes: int, wait_seconds: float = _WAIT_SECONDS) -> None:
        self._small = _Pool(total_bytes // 8)
        self._any = _Pool(total_bytes - total_bytes // 8)
        self._key_limit = total_bytes // 2
        self._small_bytes = total_bytes // 256
        self._wait_seconds = wait_seconds
        self._waiting: set[asyncio.Event] = set()

    @asynccontextmanager
    async def lease(self, key_id: str, size: int) -> AsyncIterator[BodyLease]:
        """Reserve `size` bytes until they are released or the block ends. Raises TooManyRequests, ServerBusy."""
        pool = self._pool_for(key_id, size) or await self._wait(key_id, size)
        pool.add(key_id, size)
        lease = BodyLease(self, pool, key_id, size)
        try:
            yield lease
        finally:
            lease.release()

    def wake(self) -> None:
        """Make waiting bodies check again; called by `BodyLease`."""
        for event in self._waiting:
            event.set()

    def _pool_for(self, key_id: str, size: int) -> _Pool | None:
        if not size or self._any.fits(key_id, size, self._key_limit):
            return self._any
        share = self._small.left_by_others(key_id) // 2
        return self._small if size <= self._small_bytes and self._small.fits(key_id, size, share) else None

    async def _wait(self, key_id: str, size: int) -> _Pool:
        released = asyncio.Event()
        self._waiting.add(released)
        try:
            async with asyncio.timeout(self._wait_seconds):
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
    """Requests in flight by key: each key gets half of what the others leave, so that one more always fits."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._all = 0
        self._count: Counter[str] = Counter()

    @contextmanager
    def counted(self, key_id: str) -> Iterator[None]:
        """Count a request while the block runs. Raises TooManyRequests."""
        limit = max(1, (self._total - self._all + self._count[key_id]) // 2)
        if self._count[key_id] >= limit:
            reason = f"this key has {limit} requests in flight, its current limit; end some streams"
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


class ConcurrencyLimit:
    """Limits how much work runs at once, in all and for each key, so that no key blocks the others."""

    def __init__(self, limit: int, key_limit: int) -> None:
        self._all = asyncio.Semaphore(limit)
        self._key_limit = key_limit
        self._by_key: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def slot(self, key_id: str) -> AsyncIterator[None]:
        """Wait for a free slot, and hold it while the block runs."""
        own_slots = self._by_key.setdefault(key_id, asyncio.Semaphore(self._key_limit))
        async with own_slots, self._all:
            yield
