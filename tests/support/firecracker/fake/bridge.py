"""The host's side of vsock: `CONNECT PORT` on a unix socket, and then the guest's bytes. Source: docs/vsock.md."""

from __future__ import annotations

import contextlib
import socket
import threading

_PORT = 1024
_CHUNK = 65536


class Bridge:
    """Connects clients of the socket to the only stream of the guest's agent."""

    def __init__(self, path: str, agent: socket.socket, *, spoken: bool) -> None:
        self._agent = agent
        #: Output of the agent before the first client. The agent counts as listening after its first output.
        self._first = b""
        self._spoken = threading.Event()
        if spoken:
            self._spoken.set()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(4)
        threading.Thread(target=self._hear, daemon=True).start()
        threading.Thread(target=self._serve, daemon=True).start()

    def _hear(self) -> None:
        if not self._spoken.is_set():
            self._first = self._agent.recv(_CHUNK)
            self._spoken.set()

    def _serve(self) -> None:
        while True:
            host, _ = self._listener.accept()
            if self._shakes_hands(host):
                break
            host.close()  # no listener on that port: no answer
        threading.Thread(target=_pump, args=(host, self._agent), daemon=True).start()
        with contextlib.suppress(OSError):
            host.sendall(self._first)
        _pump(self._agent, host)

    def _shakes_hands(self, host: socket.socket) -> bool:
        line = b""
        while not line.endswith(b"\n") and len(line) < 32:
            byte = host.recv(1)
            if not byte:
                return False
            line += byte
        if line != b"CONNECT %d\n" % _PORT or not self._spoken.is_set():
            return False
        host.sendall(b"OK 1073741824\n")
        return True


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            target.sendall(data)
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
