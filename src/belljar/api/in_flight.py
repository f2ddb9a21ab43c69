"""What requests may hold at once, over all connections and for each key: bytes of bodies, and requests.

A body that does not fit waits a moment before it is refused; it is not read meanwhile, so that it costs nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from belljar.errors import ServerBusy, TooManyRequests

_RETRY_SECONDS = 2
#: How long a body waits for others before it is refused.
_PATIENCE_SECONDS = 10.0


class BodyLease:
    """A part of the memory for bodies; released once, by whoever has no more use for the body."""

    def __init__(self, budget: BodyBudget, key_id: str, size: int) -> None:
        self._budget = budget
        self._key_id = key_id
        self._size = size

    def release(self) -> None:
        """Give the memory back. A second time changes nothing."""
        size, self._size = self._size, 0
        if size:
            self._budget.give_back(self._key_id, size)


class BodyBudget:
    """Bytes of request bodies that may be in memory at once; one key gets at most half of them."""

    def __init__(self, total_bytes: int, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        self._total_bytes = total_bytes
        self._patience_seconds = patience_seconds
        self._used_bytes = 0
        self._used_by: Counter[str] = Counter()
        self._waiting: set[asyncio.Event] = set()

    @asynccontextmanager
    async def lease(self, key_id: str, size: int) -> AsyncIterator[BodyLease]:
        """Hold `size` bytes until they are released or the block ends. Raises TooManyRequests, ServerBusy."""
        if not self._fits(key_id, size):
            await self._wait(key_id, size)
        self._used_bytes += size
        self._used_by[key_id] += size
        lease = BodyLease(self, key_id, size)
        try:
            yield lease
        finally:
            lease.release()

    def give_back(self, key_id: str, size: int) -> None:
        """End a lease: for `BodyLease`."""
        self._used_bytes -= size
        self._used_by[key_id] -= size
        if not self._used_by[key_id]:
            del self._used_by[key_id]
        for event in self._waiting:
            event.set()

    def _fits(self, key_id: str, size: int) -> bool:
        return self._used_bytes + size <= self._total_bytes and self._fits_key(key_id, size)

    def _fits_key(self, key_id: str, size: int) -> bool:
        return self._used_by[key_id] + size <= self._total_bytes // 2

    async def _wait(self, key_id: str, size: int) -> None:
        released = asyncio.Event()
        self._waiting.add(released)
        try:
            async with asyncio.timeout(self._patience_seconds):
                while not self._fits(key_id, size):
                    released.clear()
                    await released.wait()
        except TimeoutError:
            if not self._fits_key(key_id, size):
                reason = "this key has too many large requests in flight; send fewer at once"
                raise TooManyRequests(reason, retry_after=_RETRY_SECONDS) from None
            raise ServerBusy(
                "the server has too many large requests in flight; try again", retry_after=_RETRY_SECONDS
            ) from None
        finally:
            self._waiting.discard(released)


class RequestCount:
    """Requests in flight by key: one key cannot take every connection."""

    def __init__(self, max_per_key: int) -> None:
        self._max_per_key = max_per_key
        self._count: Counter[str] = Counter()

    @contextmanager
    def counted(self, key_id: str) -> Iterator[None]:
        """Count a request while the block runs. Raises TooManyRequests."""
        if self._count[key_id] >= self._max_per_key:
            reason = f"this key has {self._max_per_key} requests in flight, which is the limit; end some streams"
            raise TooManyRequests(reason, retry_after=_RETRY_SECONDS)
        self._count[key_id] += 1
        try:
            yield
        finally:
            self._count[key_id] -= 1
            if not self._count[key_id]:
                del self._count[key_id]
