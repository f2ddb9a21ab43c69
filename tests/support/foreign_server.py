"""A server that is nobody's: it answers as belljar's API does, with whatever a test gives it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

JOB: dict[str, Any] = {
    "id": "job_1",
    "status": "succeeded",
    "exit_code": 0,
    "signal": None,
    "error": None,
    "finished_at": "2026-01-01T00:00:00Z",
    "timings": {"phases": {}},
}


class Foreign:
    """What it answers, and what it was asked."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.job = dict(JOB)
        #: Pieces of stdout; None: lines without an end, until the job is cancelled.
        self.stdout: list[bytes] | None = []
        self.artifacts: Any = []
        #: Path → bytes, or how many bytes of nothing are sent.
        self.bodies: dict[str, bytes | int] = {}
        #: Path → a raw answer in place of the usual one.
        self.raw: dict[str, bytes | int] = {}
        self.requested: list[str] = []
        self.keys: list[str | None] = []
        self.cancelled = threading.Event()


@contextmanager
def foreign_server() -> Iterator[Foreign]:
    """The server on a free port of this machine, for the length of the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def do_POST(self) -> None:
            self._read()
            path = self._note()
            if path.endswith("/cancel"):
                foreign.cancelled.set()
                self._json(foreign.job)
            else:
                self._json({"script_id": "a" * 64} if path == "/v1/scripts" else {"id": "job_1"})

        def do_GET(self) -> None:
            path = self._note()
            if path in foreign.raw:
                self._body(foreign.raw[path])
            elif path == "/v1/jobs/job_1/logs":
                self._logs()
            elif path == "/v1/jobs/job_1/artifacts":
                self._json({"artifacts": foreign.artifacts})
            elif path.startswith("/v1/jobs/job_1/artifacts/"):
                self._body(foreign.bodies[path.removeprefix("/v1/jobs/job_1/artifacts/")])
            else:
                self._json(foreign.job)

        def _read(self) -> None:
            left = int(self.headers.get("Content-Length") or 0)
            if self.headers.get("Transfer-Encoding"):
                while size := int(self.rfile.readline(), 16):
                    self.rfile.read(size + 2)
                self.rfile.readline()
            while left > 0:
                left -= len(self.rfile.read(min(left, 65536)))

        def _note(self) -> str:
            path = unquote(urlsplit(self.path).path)
            foreign.requested.append(path)
            foreign.keys.append(self.headers.get("Authorization"))
            return path

        def _json(self, value: Any) -> None:
            self._body(json.dumps(value).encode())

        def _body(self, body: bytes | int) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(body if isinstance(body, int) else len(body)))
            self.end_headers()
            if isinstance(body, bytes):
                self.wfile.write(body)
                return
            for _ in range(0, body, 1 << 16):
                try:
                    self.wfile.write(b"\0" * (1 << 16))
                except OSError:
                    return

        def _logs(self) -> None:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            if "stream=stdout" in self.path:
                try:
                    self._chunks()
                except OSError:
                    return
            self.wfile.write(b"0\r\n\r\n")

        def _chunks(self) -> None:
            if foreign.stdout is not None:
                for piece in foreign.stdout:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                return
            while not foreign.cancelled.is_set():
                self.wfile.write(b"%x\r\n%s\r\n" % (5000, b"line\n" * 1000))

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None: ...

    with Server(("127.0.0.1", 0), Handler) as server:
        foreign = Foreign(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield foreign
        finally:
            server.shutdown()
            thread.join()
