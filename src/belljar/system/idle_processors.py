"""Measures how many of this host's processors nothing uses. Source: proc_stat(5)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

#: A shorter time says little: the kernel counts in hundredths of a second.
_SAMPLE_SECONDS = 0.2
#: An older sample says nothing about now.
_MAX_SAMPLE_SECONDS = 5.0
#: A processor that was idle for this part of the time is idle.
_IDLE_SHARE = 0.8


def read_idle_seconds(stat: Path = Path("/proc/stat")) -> float:
    """Return the idle time of all processors together since the boot. Raises OSError, ValueError."""
    fields = stat.read_text().split("\n", 1)[0].split()
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")  # idle, and idle while it waits for a disk


class IdleProcessors:
    """Idle processors between two looks, which are a fifth of a second apart at least."""

    def __init__(
        self,
        idle_seconds: Callable[[], float] = read_idle_seconds,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`idle_seconds`: idle time of all processors together; `clock`: a clock that is never set back."""
        self._idle_seconds = idle_seconds
        self._clock = clock
        #: Time and idle time of the last look; None before the first.
        self._last: tuple[float, float] | None = None
        self._idle = 0.0

    def take(self) -> bool:
        """Return whether a processor was idle, and count it as used until the next measurement."""
        self._measure()
        if self._idle < _IDLE_SHARE:
            return False
        self._idle -= 1
        return True

    def _measure(self) -> None:
        now = self._clock()
        if self._last is not None and now - self._last[0] < _SAMPLE_SECONDS:
            return
        try:
            idle_seconds = self._idle_seconds()
        except (OSError, ValueError, IndexError):
            self._idle = 0.0  # what cannot be measured is not idle
            return
        self._idle = 0.0
        if self._last is not None and now - self._last[0] < _MAX_SAMPLE_SECONDS:
            self._idle = (idle_seconds - self._last[1]) / (now - self._last[0])
        self._last = now, idle_seconds
