"""One WebSocket connection: uvicorn's, with the limits of the server's other connections."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

#: The largest message.
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
#: A client that does not answer a ping within this time is gone.
PING_SECONDS = 20.0
#: How long a client may read nothing.
WRITE_SECONDS = 60.0
#: What may wait for a client that does not read, such as answers to its pings.
_MAX_WAITING_BYTES = 8 * MAX_MESSAGE_BYTES


class WebSocket(WebSocketsSansIOProtocol):
    """A connection that began as one of `server.Connection`."""

    #: Never: it does not wait for a request.
    waits_since: float | None = None
    #: When its client stopped reading; None while it reads.
    stalled_since: float | None = None
    _write_deadline: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.get_write_buffer_size() > _MAX_WAITING_BYTES:
            self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.stalled_since = time.monotonic()
        if self._write_deadline is None:
            self._write_deadline = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._end_stall()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_stall()
        super().connection_lost(exc)

    def evict(self) -> None:
        """Close the connection at once, in favour of a new one."""
        self.transport.abort()

    def _end_stall(self) -> None:
        self.stalled_since = None
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None


#: The settings of uvicorn for these.
UVICORN_OPTIONS: dict[str, Any] = {
    "ws": WebSocket,
    "ws_max_size": MAX_MESSAGE_BYTES,
    "ws_ping_interval": PING_SECONDS,
    "ws_ping_timeout": PING_SECONDS,
    # It would cost memory for each connection.
    "ws_per_message_deflate": False,
}
