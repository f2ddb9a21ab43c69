"""Wakes those who wait for a job, or for something to do, inside one process.

Only a hint: who is woken looks at the store, and who is not (the change was another process's) looks again after a
while by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Changes:
    """Waiters by job, and those who wait for any queued job. Belongs to one event loop."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._queued = asyncio.Event()
        self._cancelled = asyncio.Event()

    def notify(self, job_id: str) -> None:
        """Something about this job was written."""
        for event in self._waiting.get(job_id, ()):
            event.set()

    @contextmanager
    def watching(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set at each change of the job; clear it before looking, so that no change is missed."""
        event = asyncio.Event()
        self._waiting.setdefault(job_id, set()).add(event)
        try:
            yield event
        finally:
            self._waiting[job_id].discard(event)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    def notify_queued(self) -> None:
        """A job became `queued`."""
        self._queued.set()

    async def wait_queued(self, timeout_seconds: float) -> bool:
        """True when a job was queued since the last call, False when time is up. For one waiter: the worker."""
        return await _wait(self._queued, timeout_seconds)

    def notify_cancelled(self) -> None:
        """Somebody wants a job cancelled that a worker holds."""
        self._cancelled.set()

    async def wait_cancelled(self, timeout_seconds: float) -> None:
        """The same for requests to cancel."""
        await _wait(self._cancelled, timeout_seconds)


async def _wait(event: asyncio.Event, timeout_seconds: float) -> bool:
    try:
        async with asyncio.timeout(timeout_seconds):
            await event.wait()
    except TimeoutError:
        return False
    event.clear()
    return True
