"""Notifies waiters of changes of sandboxes inside one process.

A notification is only a hint: the waiter reads the store. Changes that other processes wrote are found by looking again
after a bounded wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Topic:
    """Something that changes, counted: no change between two waits is missed."""

    def __init__(self) -> None:
        #: How many changes there were.
        self.count = 0
        self._changed = asyncio.Event()

    def notify(self) -> None:
        """Count a change and wake every waiter."""
        self.count += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_beyond(self, count: int, timeout_seconds: float) -> int:
        """Wait until there were more changes than `count`, at most so long; return how many there were."""
        if self.count == count:
            try:
                async with asyncio.timeout(timeout_seconds):
                    await self._changed.wait()
            except TimeoutError:
                pass
        return self.count


class SandboxChanges:
    """The waiters of one event loop: for sandboxes that wait for a node, for orders, and for single sandboxes."""

    def __init__(self) -> None:
        #: A sandbox waits for a node.
        self.waiting = Topic()
        #: A sandbox is to end, or its lifetime was changed.
        self.orders = Topic()
        self._sandboxes: dict[str, tuple[Topic, int]] = {}

    def notify(self, sandbox_id: str) -> None:
        """Wake the waiters of this sandbox: its row changed."""
        if (found := self._sandboxes.get(sandbox_id)) is not None:
            found[0].notify()

    @contextmanager
    def watching(self, sandbox_id: str) -> Iterator[Topic]:
        """Watch a sandbox: note `count`, read the sandbox, `wait_beyond` the count, read it again."""
        topic, watchers = self._sandboxes.get(sandbox_id, (Topic(), 0))
        self._sandboxes[sandbox_id] = topic, watchers + 1
        try:
            yield topic
        finally:
            topic, watchers = self._sandboxes[sandbox_id]
            if watchers == 1:
                del self._sandboxes[sandbox_id]
            else:
                self._sandboxes[sandbox_id] = topic, watchers - 1
