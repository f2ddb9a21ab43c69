"""Counts how a sandbox is used: calls under way and foreground commands. Its idle limit goes by this clock."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from belljar.model.sandbox_values import SandboxActivity


class Use:
    """The use of one sandbox, by the event loop's monotonic clock."""

    def __init__(self) -> None:
        self._count = 0
        self._last = asyncio.get_running_loop().time()
        self._unused = asyncio.Event()
        self._unused.set()

    def begin(self) -> None:
        """Count one more use, until `end`."""
        self._count += 1
        self._unused.clear()

    def end(self) -> None:
        """Count one use less; the idle time begins with the end of the last one."""
        self._count -= 1
        self._last = asyncio.get_running_loop().time()
        if not self._count:
            self._unused.set()

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count the block as use."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    def activity(self) -> SandboxActivity:
        """Return the uses now, and the seconds since the last one ended."""
        idle_seconds = 0.0 if self._count else asyncio.get_running_loop().time() - self._last
        return SandboxActivity(in_use=self._count, idle_seconds=idle_seconds)

    async def wait_idle(self, seconds: float) -> None:
        """Return when nothing has used the sandbox for that long."""
        while True:
            await self._unused.wait()
            left = self._last + seconds - asyncio.get_running_loop().time()
            if left <= 0:
                return
            await asyncio.sleep(left)
