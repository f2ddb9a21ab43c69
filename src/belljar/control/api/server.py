"""The HTTP server: uvicorn, with bounds on connections that it has not got itself.

Connections are counted before they are accepted; one that waits for a request makes room for a new one, one that is
answered does not. Each has a deadline for the head of its request, and one for taking what is sent to it. Whatever
accept(2) says, the server goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import h11
import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from belljar.control.api.app import create_app
from belljar.control.api.descriptors import max_connections
from belljar.control.api.problems import MEDIA_TYPE
from belljar.control.api.services import Services

log = structlog.get_logger()

#: How long open streams may go on when the server is told to stop.
_GOODBYE_SECONDS = 3.0
#: From the connection, or the first byte of a later request, to the end of its head.
HEAD_SECONDS = 15.0
#: Between two requests.
IDLE_SECONDS = 15.0
#: How long a reader may take nothing of what is sent to it.
WRITE_SECONDS = 120.0
#: The same where its place is needed.
STALL_SECONDS = 5.0
_MAX_HEAD_BYTES = 32 * 1024
_ACCEPTS_AT_ONCE = 64
_TROUBLE_SECONDS = 0.5
_REPORT_SECONDS = 10.0
_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_BUSY = (
    b'{"type":"about:blank","title":"Service Unavailable","status":503,"code":"server_busy",'
    b'"detail":"the server has as many connections as it may; try again"}'
)
_BUSY_ANSWER = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nRetry-After: 2\r\n"
    b"Connection: close\r\nContent-Length: " + str(len(_BUSY)).encode() + b"\r\n\r\n" + _BUSY
)


class Connection(H11Protocol):
    """One connection, with deadlines for what the client has to do."""

    _deadline: asyncio.TimerHandle | None = None
    _write_deadline: asyncio.TimerHandle | None = None
    #: Since when it waits for a request; None while one is answered.
    waits_since: float | None = None
    #: Since when its client takes nothing of what is sent to it; None while it does.
    stalled_since: float | None = None
    _has_begun = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._has_begun = True
        self._wait_for_request(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._drop_deadlines()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.waits_since is not None and not self._has_begun:
            self._has_begun = True
            self._wait_for_request(HEAD_SECONDS)
        super().data_received(data)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before and self.cycle is not None and not self.cycle.response_complete:
            self.waits_since = None
            self._drop_deadline()

    def on_response_complete(self) -> None:
        self._has_begun = False
        # A body that is still coming is thrown away, for as long as a client may be idle.
        self._wait_for_request(IDLE_SECONDS)
        super().on_response_complete()
        self._unset_keepalive_if_required()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.stalled_since = time.monotonic()
        if self._write_deadline is None:
            self._write_deadline = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.stalled_since = None
        self._drop_write_deadline()

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are not HTTP."""
        body = json.dumps(
            {"type": "about:blank", "title": "Bad Request", "status": 400, "code": "invalid_request", "detail": msg}
        ).encode()
        headers = [
            ("Content-Type", MEDIA_TYPE),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
        ]
        try:
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:  # in the middle of an answer
            self.transport.abort()
        else:
            self.transport.close()

    def evict(self) -> None:
        """Close it, to make room for another."""
        self.transport.abort()

    def _wait_for_request(self, seconds: float) -> None:
        self._drop_deadline()
        if self.waits_since is None:
            self.waits_since = time.monotonic()
        self._deadline = self.loop.call_later(seconds, self._end_of_patience)

    def _end_of_patience(self) -> None:
        self._deadline = None
        if self.transport.is_closing():
            return
        with contextlib.suppress(h11.LocalProtocolError):
            self.conn.send(h11.ConnectionClosed())
        # A client that takes nothing must not keep what was written to it either.
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _drop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _drop_write_deadline(self) -> None:
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None

    def _drop_deadlines(self) -> None:
        self._drop_deadline()
        self._drop_write_deadline()


class Acceptor:
    """Accepts connections while there is room, and answers 503 where there is none."""

    def __init__(
        self, listener: socket.socket, make: Callable[[], Connection], connections: set[Connection], max_count: int
    ) -> None:
        self._listener = listener
        self._make = make
        self._connections = connections
        self._max_count = max_count
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[Any]] = set()
        self._paused: asyncio.TimerHandle | None = None
        self._reported_at = -_REPORT_SECONDS
        self._refused = 0
        listener.setblocking(False)
        self._loop.add_reader(listener, self._accept_some)

    def close(self) -> None:
        """Accept nothing more."""
        if self._paused is not None:
            self._paused.cancel()
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener)

    async def wait_closed(self) -> None:
        """What uvicorn asks of a server at its end: there is nothing to wait for."""

    def _accept_some(self) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            if self._opening and not self._has_room():
                return  # those that are being opened may make room in a moment
            try:
                accepted, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(error)
                return
            accepted.setblocking(False)
            if self._has_room() or self._make_room():
                self._open(accepted)
            else:
                self._refuse(accepted)

    def _has_room(self) -> bool:
        return len(self._connections) + len(self._opening) < self._max_count

    def _make_room(self) -> bool:
        """Close the connection that has waited longest for a request, or whose client has taken nothing for longest.

        False when all are answered: anybody can have answers that nobody takes, without a key.
        """
        is_open = [each for each in self._connections if not each.transport.is_closing()]
        waiting = [(each.waits_since, each) for each in is_open if each.waits_since is not None]
        if not waiting:
            stalled = time.monotonic() - STALL_SECONDS
            waiting = [
                (since, each) for each in is_open if (since := each.stalled_since) is not None and since < stalled
            ]
        if not waiting:
            return False
        min(waiting, key=lambda each: each[0])[1].evict()
        return True

    def _open(self, accepted: socket.socket) -> None:
        task = self._loop.create_task(self._loop.connect_accepted_socket(self._make, accepted))
        self._opening.add(task)
        task.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task[Any]) -> None:
        self._opening.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._report("connection_not_opened", str(task.exception()))

    def _refuse(self, accepted: socket.socket) -> None:
        self._refused += 1
        with accepted, contextlib.suppress(OSError):
            accepted.send(_BUSY_ANSWER)
            accepted.shutdown(socket.SHUT_WR)
        self._report("connections_refused", "the limit is reached")

    def _pause(self, error: OSError) -> None:
        """Leave the others in the kernel's queue for a moment."""
        self._report("connections_not_accepted", error.strerror or str(error))
        seconds = _TROUBLE_SECONDS if error.errno in _OUT_OF_RESOURCES else 0.05
        self._loop.remove_reader(self._listener)
        self._paused = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._paused = None
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener, self._accept_some)

    def _report(self, event: str, reason: str) -> None:
        """One line for many of a kind."""
        now = time.monotonic()
        if now - self._reported_at >= _REPORT_SECONDS:
            self._reported_at = now
            log.warning(event, reason=reason, connections=len(self._connections), refused=self._refused)


class Server(uvicorn.Server):
    """Serves the API until `should_exit`. Leaves signals alone: uvicorn would raise them again at its end."""

    def __init__(self, services: Services, greet: Callable[[], None] = lambda: None) -> None:
        config = uvicorn.Config(
            create_app(services),
            http=Connection,
            ws="none",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=int(_GOODBYE_SECONDS),
            h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
            server_header=False,
            lifespan="off",
        )
        super().__init__(config)
        self._services = services
        self._greet = greet
        logging.getLogger("uvicorn.error").addFilter(_is_news)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await self.lifespan.startup()
        state, config = self.server_state, self.config

        def make() -> Connection:
            return Connection(config, state, self.lifespan.state)

        connections = cast("set[Connection]", state.connections)
        limit = max_connections(self._services.settings)
        self.servers = [Acceptor(each, make, connections, limit) for each in sockets or ()]  # type: ignore[misc]
        self.started = True
        self._greet()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop: followers and waiters at once, other requests when they have ended or time is up."""
        self._services.changes.stop()
        loop = asyncio.get_running_loop()
        cut_off = loop.call_later(_GOODBYE_SECONDS * 0.8, self._cut_off)
        try:
            await super().shutdown(sockets)
        finally:
            cut_off.cancel()

    def _cut_off(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a message of uvicorn's is for the log: streams that were broken off are in it already."""
    return "without completing response" not in record.msg and "Unsupported upgrade" not in record.msg
