"""Answers that go on for a while. One that ends early says so: its connection is closed without an end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from belljar.model.errors import BelljarError


class StreamBroken(Exception):
    """An answer that has begun cannot go on; the message says why, for the server's log."""


class Stream(StreamingResponse):
    """A streamed answer whose generator is closed with it, and is never cancelled.

    Cancelling it while it waits for the database would cost a connection of the pool. When the client leaves, the next
    piece ends the stream instead; `on_left` is called at once, for a generator that waits for something else.
    """

    def __init__(
        self,
        content: AsyncGenerator[bytes | str, None],
        status_code: int = 200,
        headers: dict[str, str] | None = None,
        media_type: str | None = None,
        on_left: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(content, status_code, headers, media_type)
        self._content = content
        self._on_left = on_left
        self._has_left = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        listening = asyncio.create_task(self._listen(receive))
        try:
            async with contextlib.aclosing(self._content):
                await self.stream_response(self._while_there(send))
        except BelljarError as error:
            # The head is out, so that no problem document can follow it.
            raise StreamBroken(error.message) from error
        finally:
            listening.cancel()
            await asyncio.wait([listening])

    async def _listen(self, receive: Receive) -> None:
        with contextlib.suppress(BelljarError):  # a body that is not wanted, and is too large or does not come
            await self.listen_for_disconnect(receive)
        self._has_left = True
        self._on_left()

    def _while_there(self, send: Send) -> Send:
        async def send_if_there(message: Message) -> None:
            if self._has_left:
                raise StreamBroken("the client left")
            await send(message)

        return send_if_there
