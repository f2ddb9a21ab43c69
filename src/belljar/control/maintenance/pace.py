"""Chooses the size of batches and the pauses between them, so that maintenance leaves the database to claims."""

from __future__ import annotations

import asyncio

#: How long one transaction should hold the write lock.
TARGET_SECONDS = 0.010
#: The share of the time that maintenance may hold the write lock.
_SHARE = 0.2
_FIRST_ROWS = 50
_MAX_ROWS = 200
_MIN_ROWS = 5


class Pace:
    """The size of the next batch, adapted to how long the last ones took."""

    def __init__(self) -> None:
        self.rows = _FIRST_ROWS
        #: The longest transaction so far.
        self.longest_seconds = 0.0

    async def pause(self, held_seconds: float) -> None:
        """Wait after a transaction that held the write lock this long, and choose the size of the next batch."""
        self.longest_seconds = max(self.longest_seconds, held_seconds)
        if held_seconds > TARGET_SECONDS:
            self.rows = max(_MIN_ROWS, int(self.rows * TARGET_SECONDS / held_seconds))
        elif held_seconds < TARGET_SECONDS / 2:
            self.rows = min(_MAX_ROWS, self.rows * 3 // 2)
        await asyncio.sleep(held_seconds * (1 / _SHARE - 1))
