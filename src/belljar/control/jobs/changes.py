"""Wakes those who wait for a job, or for something to do, inside one process.

Only a hint: who is woken looks at the store. What another process writes is found by one task for all waiters
(`belljar.control.jobs.polling`), which looks twice a second, and only while somebody waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Watch:
    """One who waits for a job. `wait` returns once for any number of changes before it."""

    def __init__(self, *, of_log: bool = True) -> None:
        self._event = asyncio.Event()
        #: Whether it is woken for the job's log too.
        self.of_log = of_log
        #: Whether the job's row may have changed, not only its log, since the last `take_job_changed`.
        self._job_changed = True

    def wake(self, *, job_changed: bool) -> None:
        self._job_changed |= job_changed
        self._event.set()

    def take_job_changed(self) -> bool:
        """Whether to look at the job's row again. True at first."""
        changed, self._job_changed = self._job_changed, False
        return changed

    async def wait(self, timeout_seconds: float) -> bool:
        """True when something changed since the last call, False when time is up."""
        return await _wait(self._event, timeout_seconds)


class Changes:
    """Waiters by job, and those who wait for any queued job. Belongs to one event loop."""

    def __init__(self) -> None:
        self._watches: dict[str, set[Watch]] = {}
        self._watched = asyncio.Event()
        self._queued = asyncio.Event()
        self._cancelled = asyncio.Event()
        self._revoked: set[str] = set()
        #: Set when the server stops: nobody waits any longer.
        self.stopping = False

    def notify(self, job_id: str) -> None:
        """Something about this job was written."""
        for watch in self._watches.get(job_id, ()):
            watch.wake(job_changed=True)

    def notify_log(self, job_id: str) -> None:
        """There is more in this job's log."""
        for watch in self._watches.get(job_id, ()):
            if watch.of_log:
                watch.wake(job_changed=False)

    @contextmanager
    def watching(self, job_id: str, *, of_log: bool = True) -> Iterator[Watch]:
        """A watch of the job: look at it first, then wait, then look again; no change in between is missed.

        `of_log` wakes it for what the job says too, which may be a hundred times a second.
        """
        watch = Watch(of_log=of_log)
        self._watches.setdefault(job_id, set()).add(watch)
        self._watched.set()
        try:
            yield watch
        finally:
            self._watches[job_id].discard(watch)
            if not self._watches[job_id]:
                del self._watches[job_id]
            if not self._watches:
                self._watched.clear()

    def watched(self) -> list[str]:
        """The jobs that somebody waits for."""
        return list(self._watches)

    async def wait_watched(self) -> None:
        """Return as soon as somebody waits for any job."""
        await self._watched.wait()

    def notify_revoked(self, key_id: str) -> None:
        """A key was revoked: what it has open ends."""
        self._revoked.add(key_id)
        self._wake_all()

    def is_revoked(self, key_id: str) -> bool:
        """Whether a key that was valid when its request began has been revoked since."""
        return key_id in self._revoked

    def stop(self) -> None:
        """End all waiting: the server stops."""
        self.stopping = True
        self._wake_all()

    def _wake_all(self) -> None:
        for watches in self._watches.values():
            for watch in watches:
                watch.wake(job_changed=True)

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
