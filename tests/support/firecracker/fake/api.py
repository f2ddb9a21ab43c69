"""HTTP over a unix socket, one request after the other, as Firecracker's API thread does."""

from __future__ import annotations

import json
import os
import socket
from http.server import BaseHTTPRequestHandler
from typing import Any

from behaviour import Refused, Vmm

MAX_PAYLOAD = 51200


def serve(listener: socket.socket, vmm: Vmm) -> None:
    while True:
        connection, _ = listener.accept()
        try:
            _Handler(connection, vmm)
        except OSError:
            pass  # the client has disconnected
        finally:
            connection.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, connection: socket.socket, vmm: Vmm) -> None:
        self._vmm = vmm
        super().__init__(connection, ("", 0), None)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self._answer()

    do_PUT = do_PATCH = do_GET  # noqa: N815 (names of the base class)

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if length > MAX_PAYLOAD:
            return self._send(400, {"fault_message": f"Payload size {length} exceeds the limit of {MAX_PAYLOAD}"})
        data = self.rfile.read(length)
        with open("requests.log", "a") as log:
            log.write(f"{self.command} {self.path}\n")
        if self._vmm.faults.get("die_on") == self.path:
            os._exit(1)
        try:
            body = json.loads(data) if data else None
            answer = self._vmm.request(self.command, self.path, body)
        except Refused as refused:
            return self._send(400, {"fault_message": str(refused)})
        except ValueError as error:
            return self._send(400, {"fault_message": f"An error occurred when deserializing the json body: {error}."})
        return self._send(204, None) if answer is None else self._send(200, answer)

    def _send(self, status: int, answer: dict[str, Any] | None) -> None:
        data = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if answer is not None:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass
