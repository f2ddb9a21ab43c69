"""The listening socket of the server."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator

from belljar.model.errors import HostError

_BACKLOG = 1024


@contextlib.contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """Yield a listening socket. Raises HostError when the address is in use or not one of this host."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise HostError(f"cannot listen on {host}: {error.strerror or error}") from None
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise HostError(f"port {port} on {host} is in use; choose another with --port") from None
            raise HostError(f"cannot listen on {host}:{port}: {error.strerror}") from None
        yield listener


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """Return the URL of a listening socket, with the loopback address for one that listens on all."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 (shown, not bound)
        host = "127.0.0.1"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
