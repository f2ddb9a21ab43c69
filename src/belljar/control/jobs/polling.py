"""Finds what other processes wrote: one look for all who wait in this one, and none while nobody waits.

What this process writes wakes its waiters at once, through `Changes`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from belljar.control.jobs.changes import Changes
from belljar.control.logs.log import log_path
from belljar.model.errors import HostError

log = structlog.get_logger()

POLL_SECONDS = 0.5
#: A store that refuses is asked again after this long, and not reported each time.
TROUBLE_SECONDS = 5.0

#: The state of these jobs, as anything that differs when they do.
LookAtJobs = Callable[[Sequence[str]], Awaitable[Mapping[str, object]]]
#: The keys that were revoked since then.
LookAtKeys = Callable[[datetime], Awaitable[Sequence[str]]]


@contextlib.asynccontextmanager
async def polling(
    changes: Changes, look_at_jobs: LookAtJobs, look_at_keys: LookAtKeys, data_dir: Path
) -> AsyncIterator[None]:
    """Look while the block runs."""
    poller = _Poller(changes, look_at_jobs, look_at_keys, data_dir)
    task = asyncio.create_task(poller.run(), name="changes of other processes")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


class _Poller:
    def __init__(self, changes: Changes, look_at_jobs: LookAtJobs, look_at_keys: LookAtKeys, data_dir: Path) -> None:
        self._changes = changes
        self._look_at_jobs = look_at_jobs
        self._look_at_keys = look_at_keys
        self._started_at = datetime.now(UTC)
        self._data_dir = data_dir
        self._known: dict[str, tuple[object, Any]] = {}

    async def run(self) -> None:
        while True:
            await self._changes.wait_watched()
            seconds = POLL_SECONDS
            try:
                await self._round()
            except HostError as error:
                log.warning("change_poll_failed", error=error.message)
                seconds = TROUBLE_SECONDS
            except Exception:
                log.exception("change_poll_failed")
                seconds = TROUBLE_SECONDS
            await asyncio.sleep(seconds)

    async def _round(self) -> None:
        watched = self._changes.watched()
        states = await self._look_at_jobs(watched)
        for key_id in await self._look_at_keys(self._started_at):
            if not self._changes.is_revoked(key_id):
                self._changes.notify_revoked(key_id)
        known, self._known = self._known, {}
        for job_id in watched:
            state, size = states.get(job_id), self._log_size(job_id)
            self._known[job_id] = state, size
            before = known.get(job_id)
            # The first look too: something may have been written before it, after the waiter's own look.
            if before is None or before[0] != state:
                self._changes.notify(job_id)
            elif before[1] != size:
                self._changes.notify_log(job_id)

    def _log_size(self, job_id: str) -> int | None:
        try:
            return log_path(self._data_dir, job_id).stat().st_size
        except OSError:
            return None
