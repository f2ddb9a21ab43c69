"""Detects that the database's clock was set: leases and deadlines are compared with it alone."""

from __future__ import annotations

import time

from sqlalchemy import select

from belljar.control.store.database import Database
from belljar.control.store.schema import NOW_US


class DatabaseClock:
    """The database's clock beside this process's monotonic one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        #: The last readings of both.
        self._seen: tuple[float, float] | None = None

    async def jump_seconds(self) -> float:
        """Return by how many seconds the database's clock was set since the last call."""
        now_us = await self._database.reading(lambda connection: connection.execute(select(NOW_US)).scalar_one())
        seen, self._seen = self._seen, (now_us / 1_000_000, time.monotonic())
        return 0.0 if seen is None else (self._seen[0] - seen[0]) - (self._seen[1] - seen[1])
