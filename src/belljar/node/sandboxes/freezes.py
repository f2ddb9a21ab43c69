"""What callers request of the holder of a sandbox: frozen copies of its machine, one after the other."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from belljar.link.sandboxes import FreezeRequest
from belljar.model.errors import BelljarError, Conflict
from belljar.model.sandbox import FrozenState
from belljar.model.sandbox_errors import SandboxPaused

#: Copies of one sandbox that wait to be made. Each stops it, and is written whole.
MAX_WAITING = 8


@dataclass(eq=False, slots=True)
class Freeze:
    """One request, and the answer that its caller waits for."""

    request: FreezeRequest
    answer: asyncio.Future[FrozenState]

    def finish(self, frozen: FrozenState) -> None:
        """Tell the caller that the machine is kept."""
        if not self.answer.done():
            self.answer.set_result(frozen)

    def fail(self, error: BelljarError) -> None:
        """Tell the caller why it is not."""
        if not self.answer.done():
            self.answer.set_exception(error)
            self.answer.exception()  # also when the caller has gone


class Freezes:
    """The requests that wait for the holder, and the one that it carries out."""

    def __init__(self) -> None:
        self._waiting: deque[Freeze] = deque()
        self._current: Freeze | None = None
        self._changed = asyncio.Event()
        self._closed: BelljarError | None = None

    async def request(self, request: FreezeRequest) -> FrozenState:
        """Have a request carried out, and return what the machine was frozen into.

        A caller may leave; what has begun, and a pause, go on. Raises SandboxPaused when the sandbox is being paused
        already, Conflict when too many copies wait to be made, and what the holder reports.
        """
        if self._closed is not None:
            raise self._closed
        if any(each.request.pause for each in (self._current, *self._waiting) if each and not each.answer.done()):
            raise SandboxPaused("the sandbox is being paused already; wait until it is")
        if len(self._waiting) >= MAX_WAITING and not request.pause:
            raise Conflict(f"{MAX_WAITING} snapshots or forks of the sandbox wait to be made; try again when they are")
        freeze = Freeze(request, asyncio.get_running_loop().create_future())
        self._waiting.append(freeze)
        self._changed.set()
        try:
            return await asyncio.shield(freeze.answer)
        except asyncio.CancelledError:
            if not request.pause and freeze in self._waiting:  # nobody wants the copy
                self._waiting.remove(freeze)
            raise

    async def next(self) -> Freeze:
        """Wait for the next request; it is the current one until the next call."""
        self._current = None
        while not self._waiting:
            self._changed.clear()
            await self._changed.wait()
        self._current = self._waiting.popleft()
        return self._current

    def close(self, reason: BelljarError) -> None:
        """Carry out nothing any more: whoever waits gets this error."""
        self._closed = self._closed or reason
        for each in (self._current, *self._waiting):
            if each is not None:
                each.fail(self._closed)
        self._waiting.clear()
