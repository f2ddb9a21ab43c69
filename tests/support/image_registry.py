"""A registry on the loopback that serves one layout, with the part of the OCI distribution API that pulls use."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@contextmanager
def serving_layout(folder: Path, repository: str) -> Iterator[str]:
    """Serve the layout's images by tag and digest in `repository`; yield HOST:PORT of the registry."""
    index = json.loads((folder / "index.json").read_text())
    tags = {each["annotations"]["org.opencontainers.image.ref.name"]: each for each in index["manifests"]}

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            if self.path == "/v2/":
                return self._send(200, b"{}", "application/json", body)
            blob = self._find()
            if blob is None:
                return self._send(404, b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}', "application/json", body)
            return self._send(200, *blob, body)

        def _find(self) -> tuple[bytes, str] | None:
            prefix = f"/v2/{repository}/"
            if not self.path.startswith(prefix):
                return None
            kind, _, name = self.path.removeprefix(prefix).partition("/")
            if kind == "manifests" and name in tags:
                name = tags[name]["digest"]
            path = folder / "blobs" / "sha256" / name.removeprefix("sha256:")
            if not name.startswith("sha256:") or not path.is_file():
                return None
            media = "application/vnd.oci.image.manifest.v1+json" if kind == "manifests" else "application/octet-stream"
            return path.read_bytes(), media

        def _send(self, status: int, data: bytes, media: str, body: bool) -> None:
            self.send_response(status)
            self.send_header("Content-Type", media)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
