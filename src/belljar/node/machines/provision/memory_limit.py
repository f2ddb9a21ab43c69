"""How much memory the pool may keep, and how much it may fill."""

from __future__ import annotations

import math
from collections.abc import Callable

#: Memory that jobs left for less than this long is not filled: they would take it back at once.
_STEADY_SECONDS = 10.0


class MemoryLimit:
    """The smaller of the pool's budget and the memory that jobs leave."""

    def __init__(self, budget_mb: float, free_memory_mb: Callable[[], float]) -> None:
        """`free_memory_mb`: memory that jobs leave now."""
        self._budget_mb = budget_mb
        self._free_memory_mb = free_memory_mb
        #: The lowest limits of this period of _STEADY_SECONDS and of the one before.
        self._lowest_mb = self._lowest_before_mb = math.inf
        self._period_end = -math.inf

    def keep_mb(self) -> float:
        """Return the memory that waiting clones may use now, in MiB."""
        return max(0.0, min(self._budget_mb, self._free_memory_mb()))

    def fill_mb(self, now: float) -> float:
        """Return the memory up to which clones may be made: the lowest limit since 10 to 20 seconds before `now`."""
        limit_mb = self.keep_mb()
        if now >= self._period_end:
            is_next = now < self._period_end + _STEADY_SECONDS
            self._lowest_before_mb = self._lowest_mb if is_next else math.inf
            self._lowest_mb = math.inf
            self._period_end = now + _STEADY_SECONDS
        self._lowest_mb = min(self._lowest_mb, limit_mb)
        return min(self._lowest_mb, self._lowest_before_mb)
