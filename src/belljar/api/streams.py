"""Answers that go on for a while. One that ends early says so: its connection is closed without an end."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from starlette.responses import StreamingResponse
from starlette.types import Send

from belljar.errors import BelljarError


class StreamBroken(Exception):
    """An answer that has begun cannot go on; the message says why, for the server's log."""


class Stream(StreamingResponse):
    """A streamed answer whose generator is closed with it, and not by the garbage collector some time later."""

    def __init__(
        self,
        content: AsyncGenerator[bytes | str, None],
        status_code: int = 200,
        headers: dict[str, str] | None = None,
        media_type: str | None = None,
    ) -> None:
        super().__init__(content, status_code, headers, media_type)
        self._content = content

    async def stream_response(self, send: Send) -> None:
        async with contextlib.aclosing(self._content):
            try:
                await super().stream_response(send)
            except BelljarError as error:
                # The head is out, so that no problem document can follow it.
                raise StreamBroken(error.message) from error
