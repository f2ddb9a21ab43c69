"""Notifies waiters of changes inside one process: of a job, of its log, of the queue.

A notification is only a hint: the waiter reads the store. Changes of other processes are found by one task for all
waiters (`belljar.control.jobs.polling`), which polls twice a second while there are any.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager


class Watch:
    """One waiter for changes of a job. `wait` returns once for any number of earlier changes."""

    def __init__(self, *, of_log: bool = True) -> None:
        self._event = asyncio.Event()
        #: Whether changes of the job's log wake it too.
        self.of_log = of_log
        #: Whether the job's row, not only its log, may have changed since the last `take_job_changed`.
        self._job_changed = True

    def wake(self, *, job_changed: bool) -> None:
        """Wake the waiter; `job_changed` tells it to read the job's row again."""
        self._job_changed |= job_changed
        self._event.set()

    def take_job_changed(self) -> bool:
        """Return whether to read the job's row again, once for each change. True at first."""
        changed, self._job_changed = self._job_changed, False
        return changed

    async def wait(self, timeout_seconds: float) -> bool:
        """Return True after a change since the last call, False after the timeout."""
        return await _wait(self._event, timeout_seconds)


class Changes:
    """The waiters of one event loop: by job, for queued jobs, and for requests to cancel."""

    def __init__(self) -> None:
        self._watches: dict[str, set[Watch]] = {}
        self._watched = asyncio.Event()
        self._queued = asyncio.Event()
        self._cancelled = asyncio.Event()
        self._revoked: set[str] = set()
        self._suspended: frozenset[str] = frozenset()
        #: Whether the server stops, which ends all waiting.
        self.stopping = False

    def notify(self, job_id: str) -> None:
        """Wake the waiters of this job: its row changed."""
        for watch in self._watches.get(job_id, ()):
            watch.wake(job_changed=True)

    def notify_log(self, job_id: str) -> None:
        """Wake the waiters of this job's log: it grew."""
        for watch in self._watches.get(job_id, ()):
            if watch.of_log:
                watch.wake(job_changed=False)

    @contextmanager
    def watching(self, job_id: str, *, of_log: bool = True) -> Iterator[Watch]:
        """Register a watch of the job. Read the job, wait, read it again: no change in between is missed.

        With `of_log` it is also woken for the job's output, up to a hundred times a second.
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
        """Return the ids of the jobs that have waiters."""
        return list(self._watches)

    async def wait_watched(self) -> None:
        """Return as soon as any job has a waiter."""
        await self._watched.wait()

    def notify_revoked(self, id: str) -> None:
        """End the open streams and waits of a key that was revoked or has expired, or of a session that ended."""
        self._revoked.add(id)
        self._wake_all()

    def is_revoked(self, id: str) -> bool:
        """Return whether a key was revoked, or a session ended, since this process started."""
        return id in self._revoked

    def set_suspended(self, projects: Collection[str]) -> None:
        """Set which projects are suspended: the open streams and waits of their keys end."""
        more = not self._suspended.issuperset(projects)
        self._suspended = frozenset(projects)
        if more:
            self._wake_all()

    def set_active(self, project: str) -> None:
        """Note that a project is not suspended: another process may have resumed it."""
        if project in self._suspended:
            self._suspended -= {project}

    def is_suspended(self, project: str) -> bool:
        """Return whether a project is suspended, as far as this process knows."""
        return project in self._suspended

    def stop(self) -> None:
        """End all waiting, because the server stops."""
        self.stopping = True
        self._wake_all()

    def _wake_all(self) -> None:
        for watches in self._watches.values():
            for watch in watches:
                watch.wake(job_changed=True)

    def notify_queued(self) -> None:
        """Wake the worker: a job became `queued`."""
        self._queued.set()

    async def wait_queued(self, timeout_seconds: float) -> bool:
        """Return True after a job was queued since the last call, False after the timeout. For one waiter."""
        return await _wait(self._queued, timeout_seconds)

    def notify_cancelled(self) -> None:
        """Wake the worker: a job that it holds is to be cancelled."""
        self._cancelled.set()

    async def wait_cancelled(self, timeout_seconds: float) -> None:
        """Return after a request to cancel since the last call, or after the timeout."""
        await _wait(self._cancelled, timeout_seconds)


async def _wait(event: asyncio.Event, timeout_seconds: float) -> bool:
    try:
        async with asyncio.timeout(timeout_seconds):
            await event.wait()
    except TimeoutError:
        return False
    event.clear()
    return True
