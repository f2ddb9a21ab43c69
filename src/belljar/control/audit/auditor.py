"""Writes what no transaction of a change writes: refused and failed requests, and heads outside the database."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from belljar.control.audit.entry import Entry, values_of
from belljar.control.audit.heads import Heads
from belljar.control.audit.refusals import Refusals
from belljar.control.store.audit import SqlAudit
from belljar.model.errors import HostError
from belljar.system.background import supervise

log = structlog.get_logger()

_FLUSH_SECONDS = 1.0
#: How often the newest hash is noted outside the database.
HEAD_SECONDS = 600.0


class Auditor:
    """Records actions in the audit log."""

    def __init__(self, store: SqlAudit) -> None:
        self.store = store
        self._refusals = Refusals()

    async def record(self, entry: Entry) -> None:
        """Write a row now. If the database cannot, the log gets the whole entry: the action is done already."""
        try:
            await self.store.append([entry])
        except HostError as error:
            log.error("audit_write_failed", error=error.message, entry=values_of(entry))

    def refuse(self, entry: Entry) -> None:
        """Record a refused request within a second, or count it with others of its kind."""
        self._refusals.add(entry)

    async def flush(self, *, all_counts: bool = False) -> None:
        """Write refused requests that wait. Raises HostError; they then wait for the next time."""
        entries = self._refusals.take(all_counts=all_counts)
        if not entries:
            return
        try:
            await self.store.append(entries)
        except HostError:
            self._refusals.put_back(entries)
            raise

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write refused requests every second while the block runs, and the rest at its end."""
        task = asyncio.create_task(supervise("audit", self._flush_repeatedly))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            with contextlib.suppress(HostError):
                await self.flush(all_counts=True)

    async def _flush_repeatedly(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_SECONDS)
            await self.flush()

    async def note_heads(self, heads: Heads) -> None:
        """Note the newest hash in the file of heads and in the log, now and at intervals, until cancelled.

        Raises HostError, OSError.
        """
        while True:
            await self.note_head(heads)
            await asyncio.sleep(HEAD_SECONDS)

    async def note_head(self, heads: Heads) -> None:
        """Note the newest hash if it is not noted yet. Raises HostError, OSError."""
        _, newest = await self.store.ends()
        if newest.seq and await asyncio.to_thread(heads.add, newest):
            log.info("audit_head_noted", seq=newest.seq, hash=newest.hash.hex())
