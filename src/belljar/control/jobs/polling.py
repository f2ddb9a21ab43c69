"""Finds changes that other processes wrote: one poll for all waiters of this process, none while there are no waiters.

Changes of this process wake its waiters at once, through `Changes`.
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
#: The pause after a failed poll.
RETRY_SECONDS = 5.0

#: Returns the states of jobs, as values that differ when the jobs do.
ReadStates = Callable[[Sequence[str]], Awaitable[Mapping[str, object]]]
#: Returns the ids of the keys that were revoked or expired since a time, or of the sessions that ended.
ReadEnded = Callable[[datetime], Awaitable[Sequence[str]]]
#: Returns the names of the suspended projects.
ReadSuspended = Callable[[], Awaitable[Sequence[str]]]


@contextlib.asynccontextmanager
async def polling(
    changes: Changes,
    read_states: ReadStates,
    read_ended: Sequence[ReadEnded],
    read_suspended: ReadSuspended,
    data_dir: Path,
) -> AsyncIterator[None]:
    """Poll while the block runs."""
    poller = _Poller(changes, read_states, read_ended, read_suspended, data_dir)
    task = asyncio.create_task(poller.run(), name="change polling")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


class _Poller:
    def __init__(
        self,
        changes: Changes,
        read_states: ReadStates,
        read_ended: Sequence[ReadEnded],
        read_suspended: ReadSuspended,
        data_dir: Path,
    ) -> None:
        self._changes = changes
        self._read_states = read_states
        self._read_ended = read_ended
        self._read_suspended = read_suspended
        self._started_at = datetime.now(UTC)
        self._data_dir = data_dir
        self._known: dict[str, tuple[object, Any]] = {}

    async def run(self) -> None:
        while True:
            await self._changes.wait_watched()
            seconds = POLL_SECONDS
            try:
                await self._poll()
            except HostError as error:
                log.warning("change_poll_failed", error=error.message)
                seconds = RETRY_SECONDS
            except Exception:
                log.exception("change_poll_failed")
                seconds = RETRY_SECONDS
            await asyncio.sleep(seconds)

    async def _poll(self) -> None:
        watched = self._changes.watched()
        states = await self._read_states(watched)
        for read in self._read_ended:
            for id in await read(self._started_at):
                if not self._changes.is_revoked(id):
                    self._changes.notify_revoked(id)
        self._changes.set_suspended(await self._read_suspended())
        known, self._known = self._known, {}
        for job_id in watched:
            state, size = states.get(job_id), self._log_size(job_id)
            self._known[job_id] = state, size
            before = known.get(job_id)
            # Also after the first poll: the change may have come before it and after the waiter's read.
            if before is None or before[0] != state:
                self._changes.notify(job_id)
            elif before[1] != size:
                self._changes.notify_log(job_id)

    def _log_size(self, job_id: str) -> int | None:
        try:
            return log_path(self._data_dir, job_id).stat().st_size
        except OSError:
            return None
