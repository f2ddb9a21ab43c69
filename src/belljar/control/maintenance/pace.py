"""How large a batch is, and how long the pause behind it: so that maintenance leaves the database to claims."""

from __future__ import annotations

import asyncio

#: How long one transaction should hold the write lock.
TARGET_SECONDS = 0.010
#: The part of the time that the write lock may be held.
_SHARE = 0.2
_FIRST_ROWS = 50
_MAX_ROWS = 200
_MIN_ROWS = 5


class Pace:
    """Adapts the size of batches to how long they take."""

    def __init__(self) -> None:
        self.rows = _FIRST_ROWS
        #: The longest transaction so far.
        self.longest_seconds = 0.0

    async def pause(self, held_seconds: float) -> None:
        """Leave the database to others after a transaction that took so long, and choose the next batch's size."""
        self.longest_seconds = max(self.longest_seconds, held_seconds)
        if held_seconds > TARGET_SECONDS:
            self.rows = max(_MIN_ROWS, int(self.rows * TARGET_SECONDS / held_seconds))
        elif held_seconds < TARGET_SECONDS / 2:
            self.rows = min(_MAX_ROWS, self.rows * 3 // 2)
        await asyncio.sleep(held_seconds * (1 / _SHARE - 1))
