"""Opens an accepted connection with TLS. A client that speaks plain HTTP gets an answer that says so."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable

#: From the connection to the end of the handshake.
HANDSHAKE_SECONDS = 10.0
#: How long a client may take to end the TLS connection after the server has.
_SHUTDOWN_SECONDS = 5.0
#: The first byte of a TLS handshake record (RFC 8446, 5.1).
_HANDSHAKE = b"\x16"
_PLAIN = (
    b'{"type":"about:blank","title":"Bad Request","status":400,"code":"invalid_request",'
    b'"detail":"this port takes TLS only; use https:// instead of http://"}'
)


async def open_tls(
    make: Callable[[], asyncio.BaseProtocol], accepted: socket.socket, context: ssl.SSLContext, plain_head: bytes
) -> None:
    """Perform the handshake, after which the protocol that `make` returns has the connection.

    `plain_head` is the status line and the headers of the answer to plain HTTP, without the length. Takes the socket.
    Raises OSError, TimeoutError when there is no handshake.
    """
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        stack.callback(accepted.close)
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            first = await _peek(loop, accepted)
        if first != _HANDSHAKE:
            with contextlib.suppress(OSError):
                if first.isalpha():  # a method
                    accepted.send(plain_head + b"Content-Length: %d\r\n\r\n" % len(_PLAIN) + _PLAIN)
                    accepted.shutdown(socket.SHUT_WR)
            return
        stack.pop_all()  # the transport has the socket from here, and closes it
        await loop.connect_accepted_socket(
            make,
            accepted,
            ssl=context,
            ssl_handshake_timeout=HANDSHAKE_SECONDS,
            ssl_shutdown_timeout=_SHUTDOWN_SECONDS,
        )


async def _peek(loop: asyncio.AbstractEventLoop, accepted: socket.socket) -> bytes:
    """Return the first byte without taking it; empty when the client has closed the connection."""
    readable = asyncio.Event()
    loop.add_reader(accepted, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(accepted)
    return accepted.recv(1, socket.MSG_PEEK)
