"""Counts what running jobs use while they run, so that a quota of a day holds before they end."""

from __future__ import annotations

import asyncio

from belljar.control.store.claims import SqlClaims

#: Far below the longest time that is counted at once (`control.store.counting.MAX_COUNTED_US`).
_INTERVAL_SECONDS = 15.0


class UsageMeter:
    """Meters the attempts of all nodes. It may run in several processes: each counts what no other has counted."""

    def __init__(self, claims: SqlClaims) -> None:
        self._claims = claims

    async def run(self) -> None:
        """Meter at intervals, until cancelled. Raises HostError."""
        while True:
            await asyncio.sleep(_INTERVAL_SECONDS)
            await self._claims.meter()
