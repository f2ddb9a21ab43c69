"""Ends sandboxes that no node ends: of nodes that died, past their lifetime, or without a node for too long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection

import structlog

from belljar.control.store.clock import DatabaseClock
from belljar.control.store.sandbox_claims import SqlSandboxClaims
from belljar.model.sandbox import Sandbox

log = structlog.get_logger()

#: How long a sandbox waits for a node before it ends with `no_room`.
WAIT_SECONDS = 30.0
_INTERVAL_SECONDS = 2.0


class SandboxExpiry:
    """A background service; it may run in several processes: the database lets each sandbox be ended once.

    Living nodes that could not renew their leases, because this process stood still or the clock was set, get the time
    of a lease to do so first.
    """

    def __init__(
        self,
        claims: SqlSandboxClaims,
        clock: DatabaseClock,
        lease_seconds: float,
        note_changed: Callable[[Collection[Sandbox]], None],
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        """`note_changed` is called with the sandboxes that were ended or taken from their nodes."""
        self._claims = claims
        self._clock = clock
        self._lease_seconds = lease_seconds
        self._note_changed = note_changed
        self._wait_seconds = wait_seconds
        self._interval_seconds = min(_INTERVAL_SECONDS, lease_seconds / 3)
        self._not_before = 0.0
        self.postpone()

    def postpone(self) -> None:
        """Leave all leases alone for as long as one lasts: living nodes renew theirs meanwhile."""
        self._not_before = time.monotonic() + self._lease_seconds

    async def run(self) -> None:
        """Work until cancelled. Raises HostError."""
        await self._clock.jump_seconds()
        while True:
            slept = time.monotonic()
            await asyncio.sleep(self._interval_seconds)
            if time.monotonic() - slept > self._interval_seconds + self._lease_seconds / 3:
                self.postpone()
            await self.end_overdue()

    async def end_overdue(self) -> list[Sandbox]:
        """End what is due, and return it. Raises HostError."""
        jump_seconds = await self._clock.jump_seconds()
        if abs(jump_seconds) > self._lease_seconds / 3:
            log.warning("clock_jumped", seconds=round(jump_seconds, 1))
            self.postpone()
            if jump_seconds < 0:
                await self._claims.shorten_leases(self._lease_seconds)
        try:
            async with asyncio.timeout(self._lease_seconds):
                ended = await self._claims.end_overdue(self._wait_seconds, grace_seconds=self._lease_seconds)
                if time.monotonic() >= self._not_before:
                    ended = [*ended, *await self._claims.lose_silent()]
        except Exception:
            self.postpone()
            raise
        for sandbox in ended:
            reason = sandbox.end.reason if sandbox.end is not None else None
            log.warning("sandbox_expired", sandbox=sandbox.id, status=sandbox.status, reason=reason)
        self._note_changed(ended)
        return ended
