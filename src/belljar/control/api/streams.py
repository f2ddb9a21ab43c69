"""Streamed responses. One that ends early is visibly incomplete: its connection is closed without an end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from belljar.model.errors import BelljarError


class StreamAborted(Exception):
    """A response that has begun cannot continue; the message is the reason, for the server's log."""


class Stream(StreamingResponse):
    """A streamed response whose generator is closed with it, and is never cancelled.

    Cancelling it while it waits for the database would cost a connection of the pool. When the client disconnects, the
    next chunk ends the stream instead; `on_disconnect` is called at once, for a generator that waits.
    """

    def __init__(
        self,
        content: AsyncGenerator[bytes | str, None],
        status_code: int = 200,
        headers: dict[str, str] | None = None,
        media_type: str | None = None,
        on_disconnect: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(content, status_code, headers, media_type)
        self._content = content
        self._on_disconnect = on_disconnect
        self._is_disconnected = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        listening = asyncio.create_task(self._listen(receive))
        try:
            async with contextlib.aclosing(self._content):
                await self.stream_response(self._while_connected(send))
        except BelljarError as error:
            # The headers are sent, so a problem document cannot follow.
            raise StreamAborted(error.message) from error
        finally:
            listening.cancel()
            await asyncio.wait([listening])

    async def _listen(self, receive: Receive) -> None:
        with contextlib.suppress(BelljarError):  # an unread body that is too large or too slow
            await self.listen_for_disconnect(receive)
        self._is_disconnected = True
        self._on_disconnect()

    def _while_connected(self, send: Send) -> Send:
        async def send_if_connected(message: Message) -> None:
            if self._is_disconnected:
                raise StreamAborted("the client disconnected")
            await send(message)

        return send_if_connected
