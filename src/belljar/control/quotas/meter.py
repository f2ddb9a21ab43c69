"""Counts what jobs and sandboxes use while they run, so that a quota of a day holds before they end."""

from __future__ import annotations

import asyncio
from typing import Protocol

#: Far below the longest time that is counted at once (`control.store.counting.MAX_COUNTED_US`).
_INTERVAL_SECONDS = 15.0


class MeteredClaims(Protocol):
    """What nodes hold: `SqlClaims` or `SqlSandboxClaims`."""

    async def meter(self) -> None: ...


class UsageMeter:
    """Meters the machines of all nodes. It may run in several processes: each counts what no other has counted."""

    def __init__(self, claims: MeteredClaims) -> None:
        self._claims = claims

    async def run(self) -> None:
        """Meter at intervals, until cancelled. Raises HostError."""
        while True:
            await asyncio.sleep(_INTERVAL_SECONDS)
            await self._claims.meter()
