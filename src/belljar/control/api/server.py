"""The HTTP server: uvicorn, with limits on connections that uvicorn lacks.

Connections are counted before they are accepted. At the limit, an idle connection is evicted for a new one. Each has a
deadline for the headers of its request, and one for reading the response. The server survives every error of accept(2).
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
from typing import TYPE_CHECKING, Any, cast

import h11
import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from belljar.control.api.app import create_app
from belljar.control.api.file_descriptors import max_connections
from belljar.control.api.problems import MEDIA_TYPE
from belljar.control.api.security_headers import HEADER_LINES, HEADERS
from belljar.control.api.services import Services
from belljar.control.api.tls_accept import open_tls
from belljar.control.api.websocket import UVICORN_OPTIONS, WebSocket

if TYPE_CHECKING:
    from belljar.control.api.tls import ServerTls

log = structlog.get_logger()

#: How long open streams may continue when the server stops.
_SHUTDOWN_SECONDS = 3.0
#: From the connection, or the first byte of a later request, to the end of the headers.
HEAD_SECONDS = 15.0
#: Between two requests.
IDLE_SECONDS = 15.0
#: How long a client may read nothing of a response.
WRITE_SECONDS = 120.0
#: The same at the limit of connections.
STALL_SECONDS = 5.0
_MAX_HEAD_BYTES = 32 * 1024
_ACCEPTS_AT_ONCE = 64
_PAUSE_SECONDS = 0.5
_REPORT_SECONDS = 10.0
_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_BUSY = (
    b'{"type":"about:blank","title":"Service Unavailable","status":503,"code":"server_busy",'
    b'"detail":"the server has reached its limit of connections; try again"}'
)
_PROBLEM_HEAD = b"Content-Type: application/problem+json\r\nConnection: close\r\n" + HEADER_LINES
_BUSY_RESPONSE = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\n"
    + _PROBLEM_HEAD
    + b"Content-Length: %d\r\n\r\n" % len(_BUSY)
    + _BUSY
)
#: How a TLS port answers plain HTTP, up to the length.
_PLAIN_HEAD = b"HTTP/1.1 400 Bad Request\r\n" + _PROBLEM_HEAD


class Connection(H11Protocol):
    """One connection, with deadlines for the client."""

    _deadline: asyncio.TimerHandle | None = None
    _write_deadline: asyncio.TimerHandle | None = None
    #: When it began to wait for a request; None during a request.
    waits_since: float | None = None
    #: When its client stopped reading; None while it reads.
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
        # The rest of an unread body is discarded, until the idle deadline.
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
            *HEADERS.items(),
        ]
        try:
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:  # in the middle of a response
            self.transport.abort()
        else:
            self.transport.close()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._drop_deadlines()
        super().handle_websocket_upgrade(event)

    def evict(self) -> None:
        """Close the connection at once, in favour of a new one."""
        self.transport.abort()

    def _wait_for_request(self, seconds: float) -> None:
        self._drop_deadline()
        if self.waits_since is None:
            self.waits_since = time.monotonic()
        self._deadline = self.loop.call_later(seconds, self._deadline_passed)

    def _deadline_passed(self) -> None:
        self._deadline = None
        if self.transport.is_closing():
            return
        with contextlib.suppress(h11.LocalProtocolError):
            self.conn.send(h11.ConnectionClosed())
        # A client that does not read must not keep the memory of its buffer.
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
    """Accepts connections up to the limit, and responds with 503 above it."""

    def __init__(
        self,
        listener: socket.socket,
        make: Callable[[], Connection],
        connections: set[Connection | WebSocket],
        max_count: int,
        tls: ServerTls | None = None,
    ) -> None:
        self._listener = listener
        self._make = make
        self._connections = connections
        self._max_count = max_count
        self._loop = asyncio.get_running_loop()
        self._tls = tls
        #: In the order of their beginning; with TLS, these are handshakes.
        self._opening: dict[asyncio.Task[Any], None] = {}
        self._paused: asyncio.TimerHandle | None = None
        self._reported_at = -_REPORT_SECONDS
        self._refused = 0
        listener.setblocking(False)
        self._loop.add_reader(listener, self._accept_some)

    def close(self) -> None:
        """Accept nothing more."""
        if self._paused is not None:
            self._paused.cancel()
        if self._tls:
            for task in self._opening:
                task.cancel()
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener)

    async def wait_closed(self) -> None:
        """Return at once: uvicorn requires the method, and there is nothing to wait for."""

    def _accept_some(self) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            if self._opening and not self._tls and not self._is_below_limit():
                return  # wait for those that are being opened
            try:
                accepted, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(error)
                return
            accepted.setblocking(False)
            if self._is_below_limit() or self._evict_one():
                self._open(accepted)
            else:
                self._refuse(accepted)

    def _is_below_limit(self) -> bool:
        return len(self._connections) + len(self._opening) < self._max_count

    def _evict_one(self) -> bool:
        """Close the oldest handshake, else the connection that has waited longest for a request, else the one whose
        client has stalled longest.

        Return False when there is none. Stalled clients count since a client needs no key to get a response.
        """
        if self._tls and self._opening:
            oldest = next(iter(self._opening))
            del self._opening[oldest]
            oldest.cancel()
            return True
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
        if self._tls:
            opening: Any = open_tls(self._make, accepted, self._tls.context, _PLAIN_HEAD)
        else:
            opening = self._loop.connect_accepted_socket(self._make, accepted)
        task = self._loop.create_task(opening)
        self._opening[task] = None
        task.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task[Any]) -> None:
        self._opening.pop(task, None)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if self._tls and isinstance(error, OSError):  # of the client: also TimeoutError, ssl.SSLError
            log.debug("tls_handshake_failed", reason=str(error) or type(error).__name__)
        else:
            self._report("connection_open_failed", str(error))

    def _refuse(self, accepted: socket.socket) -> None:
        self._refused += 1
        with accepted, contextlib.suppress(OSError):
            if not self._tls:
                accepted.send(_BUSY_RESPONSE)
            accepted.shutdown(socket.SHUT_WR)
        self._report("connections_refused", "the limit of connections is reached")

    def _pause(self, error: OSError) -> None:
        """Leave new connections in the kernel's queue for a moment."""
        self._report("connection_accept_failed", error.strerror or str(error))
        seconds = _PAUSE_SECONDS if error.errno in _OUT_OF_RESOURCES else 0.05
        self._loop.remove_reader(self._listener)
        self._paused = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._paused = None
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener, self._accept_some)

    def _report(self, event: str, reason: str) -> None:
        """Log one line for many events."""
        now = time.monotonic()
        if now - self._reported_at >= _REPORT_SECONDS:
            self._reported_at = now
            log.warning(event, reason=reason, connections=len(self._connections), refused=self._refused)


class Server(uvicorn.Server):
    """Serves the API until `should_exit`. Does not handle signals: uvicorn would raise them again at its end."""

    def __init__(
        self, services: Services, on_listening: Callable[[], None] = lambda: None, tls: ServerTls | None = None
    ) -> None:
        proxies = services.settings.trusted_proxies
        config = uvicorn.Config(
            create_app(services),
            http=Connection,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=int(_SHUTDOWN_SECONDS),
            h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
            server_header=False,
            lifespan="off",
            # Otherwise every program on this host could claim another address.
            proxy_headers=bool(proxies),
            forwarded_allow_ips=proxies,
            **UVICORN_OPTIONS,
        )
        super().__init__(config)
        self._services = services
        self._on_listening = on_listening
        self._tls = tls
        logging.getLogger("uvicorn.error").addFilter(_is_relevant)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then call `on_listening`."""
        await self.lifespan.startup()
        state, config = self.server_state, self.config

        def make() -> Connection:
            return Connection(config, state, self.lifespan.state)

        connections = cast("set[Connection | WebSocket]", state.connections)
        limit = max_connections(self._services.settings)
        self.servers = [Acceptor(each, make, connections, limit, self._tls) for each in sockets or ()]  # type: ignore[misc]
        self.started = True
        self._on_listening()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop: followers and waiters at once, other requests at their end or at the shutdown deadline."""
        self._services.changes.stop()
        loop = asyncio.get_running_loop()
        abort = loop.call_later(_SHUTDOWN_SECONDS * 0.8, self._abort_connections)
        try:
            await super().shutdown(sockets)
        finally:
            abort.cancel()

    def _abort_connections(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the caller."""
        yield


def _is_relevant(record: logging.LogRecord) -> bool:
    """Return whether to log a message of uvicorn's: aborted streams are logged already."""
    return "without completing response" not in record.msg and "Unsupported upgrade" not in record.msg
