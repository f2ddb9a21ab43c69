"""The usage of a session's machine, for any number of readers: the shortest interval that one of them wants holds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from belljar.model.errors import MachineDied
from belljar.node.guest import requests
from belljar.node.guest.channel import ChannelBroken, SessionState
from belljar.node.guest.channel_messages import Usage

#: Messages that wait for a slow reader; older ones are dropped.
_MAX_WAITING = 16
_SHORTEST_MS = 100


class UsageMeter:
    """Subscribes to the agent's messages of usage, and shares them."""

    def __init__(self, state: SessionState, ended: asyncio.Event) -> None:
        """`ended` is set when no message follows; `state.ended` says why."""
        self._state = state
        self._ended = ended
        #: The readers, and the interval that each wants.
        self._readers: dict[asyncio.Queue[Usage], int] = {}
        self._interval_ms = 0
        #: Whether a message may come: the last one may be under way when nobody reads any more.
        self.was_used = False

    async def subscribe(self, interval_seconds: float) -> AsyncGenerator[Usage, None]:
        """Yield messages. Raises ChannelBroken when the session ends."""
        queue: asyncio.Queue[Usage] = asyncio.Queue(_MAX_WAITING)
        self._readers[queue] = max(_SHORTEST_MS, round(interval_seconds * 1000))
        try:
            await self._set_interval()
            while True:
                yield await self._next(queue)
        finally:
            del self._readers[queue]
            if not self._state.ended:
                with contextlib.suppress(ChannelBroken, MachineDied):
                    await self._set_interval()

    def share(self, message: Usage) -> None:
        """Hand a message to every reader."""
        for queue in self._readers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(message)

    async def _set_interval(self) -> None:
        interval_ms = min(self._readers.values(), default=0)
        if interval_ms != self._interval_ms:
            self._interval_ms, self.was_used = interval_ms, True
            await self._state.send(requests.meter(interval_ms))

    async def _next(self, queue: asyncio.Queue[Usage]) -> Usage:
        getting = asyncio.create_task(queue.get())
        ended = asyncio.create_task(self._ended.wait())
        try:
            await asyncio.wait([getting, ended], return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                return getting.result()
            raise ChannelBroken(self._state.ended)
        finally:
            getting.cancel()
            ended.cancel()
