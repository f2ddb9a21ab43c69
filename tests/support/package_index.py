"""Packages made by hand, and an index that serves them on a private address of the test internet."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from belljar.node.machines.host.namespace import run_in_namespace
from support.internet import INTERNET, NETNS, PRIVATE_WEB, listen

PORT = 8081
#: A build backend that is the package's own (PEP 517): it runs while the package is installed.
BACKEND = """
import base64, hashlib, os, zipfile

def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "{name}-{version}-py3-none-any.whl"
    files = {{
        "{name}.py": f"BUILT_ON = {{os.uname().nodename!r}}\\nBUILT_BY = {{os.getuid()}}\\n",
        "{name}-{version}.dist-info/METADATA": "Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n",
        "{name}-{version}.dist-info/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    }}
    with zipfile.ZipFile(os.path.join(folder, name), "w") as out:
        for path, text in files.items():
            out.writestr(path, text)
        out.writestr("{name}-{version}.dist-info/RECORD", "")
    return name
"""


def wheel(name: str, version: str, files: Mapping[str, str], *, requires: str = "", programs: str = "") -> bytes:
    """Return a wheel (PEP 427) with these files; `programs` are lines of console_scripts."""
    info = f"{name}-{version}.dist-info"
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    members = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if programs:
        members[f"{info}/entry_points.txt"] = f"[console_scripts]\n{programs}\n"
    rows = [f"{path},sha256={_digest(text)},{len(text.encode())}" for path, text in members.items()]
    members[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,"])
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in members.items():
            archive.writestr(path, text)
    return out.getvalue()


def source(name: str, version: str) -> bytes:
    """Return a source distribution whose module contains the name of the machine that built it."""
    project = f'[project]\nname = "{name}"\nversion = "{version}"\n'
    system = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    files = {
        "pyproject.toml": system + project,
        "backend.py": BACKEND.format(name=name, version=version),
        "PKG-INFO": f"Metadata-Version: 2.2\nName: {name}\nVersion: {version}\n",
    }
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for path, text in files.items():
            member = tarfile.TarInfo(f"{name}-{version}/{path}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return out.getvalue()


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


class Index:
    """A package index (PEP 503) that records requests; a request for a project in `held` waits for its event."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requested: list[str] = []
        self.held: dict[str, threading.Event] = {}

    def add(self, filename: str, data: bytes) -> None:
        self.files[filename] = data

    def projects(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for filename in self.files:
            found.setdefault(filename.split("-")[0].replace("_", "-"), []).append(filename)
        return found

    def page(self, project: str) -> bytes | None:
        self.requested.append(project)
        if project in self.held:
            self.held[project].wait(60)
        names = self.projects().get(project)
        if names is None:
            return None
        digests = {name: hashlib.sha256(self.files[name]).hexdigest() for name in names}
        links = "".join(f'<a href="/files/{name}#sha256={digests[name]}">{name}</a>\n' for name in names)
        return f"<!DOCTYPE html><html><body>{links}</body></html>".encode()

    def answer(self, path: str) -> bytes | None:
        kind, _, name = path.strip("/").partition("/")
        if kind == "simple":
            return self.page(name)
        self.requested.append(name)
        return self.files.get(name)

    def __enter__(self) -> Index:
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                data = index.answer(self.path)
                self.send_response(404 if data is None else 200)
                self.send_header("Content-Type", "text/html" if "/simple/" in self.path else "application/octet-stream")
                self.send_header("Content-Length", str(len(data or b"")))
                self.end_headers()
                try:
                    self.wfile.write(data if data and self.command == "GET" else b"")
                except OSError:
                    self.close_connection = True

            def log_message(self, *arguments: object) -> None:
                pass

        listener = run_in_namespace(NETNS / INTERNET, lambda: listen(PRIVATE_WEB, PORT))
        self._server = ThreadingHTTPServer((PRIVATE_WEB, PORT), Handler, bind_and_activate=False)
        self._server.daemon_threads = True
        self._server.socket.close()
        self._server.socket = listener
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for held in self.held.values():
            held.set()
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()
