"""What tests of the sandbox routes share: a served API with a node of agent processes, and calls to one sandbox."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
from websockets.asyncio.client import connect

from belljar.control.api.server import Server
from support.sandbox_node import AgentNode
from support.served import Served

#: The domain of the host names of ports.
PORTS_DOMAIN = "boxes.localhost"


@dataclass(frozen=True)
class SandboxApi:
    """The API, the node behind it, and a client of the project `tenant`."""

    served: Served
    node: AgentNode
    http: httpx.AsyncClient

    async def create(self, **options: Any) -> OneSandbox:
        response = await self.http.post("/v1/sandboxes", json=options)
        assert response.status_code == 201, response.text
        return OneSandbox(self.http, response.json()["id"], self.node.folder)


@dataclass(frozen=True)
class OneSandbox:
    """One running sandbox of the project."""

    http: httpx.AsyncClient
    id: str
    #: The working folder of its commands, on this host: its machine is a process.
    folder: Path

    @property
    def url(self) -> str:
        return f"/v1/sandboxes/{self.id}"

    async def exec(self, command: str, **options: Any) -> dict[str, Any]:
        response = await self.http.post(f"{self.url}/exec", json={"command": command, **options}, timeout=60)
        assert response.status_code in (200, 201), response.text
        result: dict[str, Any] = response.json()
        return result

    async def stream(self, command: str, **options: Any) -> list[tuple[str, dict[str, Any]]]:
        body = {"command": command, **options}
        response = await self.http.post(f"{self.url}/exec?stream=true", json=body, timeout=60)
        assert response.status_code == 200, response.text
        return events_of(response.text)

    async def broken_stream(self, served: Served, command: str) -> list[tuple[str, dict[str, Any]]]:
        """Return the events of a stream that must end without the end of its response."""
        body = json.dumps({"command": command}).encode()
        url = httpx.URL(f"{self.url}/exec")
        sent: list[dict[str, Any]] = []
        waiting = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if waiting.is_set():
                await asyncio.sleep(60)
                return {"type": "http.disconnect"}
            waiting.set()
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(dict(message))

        headers = [(name.lower(), value) for name, value in self.http.headers.raw]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": url.path,
            "raw_path": url.raw_path,
            "query_string": b"stream=true",
            "root_path": "",
            "headers": [*headers, (b"host", b"localhost"), (b"content-type", b"application/json")],
            "server": ("localhost", 80),
            "client": ("127.0.0.1", 1),
        }
        await served.transport.app(scope, receive, send)  # type: ignore[arg-type]
        assert sent[0]["status"] == 200 and sent[-1].get("more_body")
        return events_of(b"".join(each.get("body", b"") for each in sent).decode())

    def file(self, path: Path | str) -> str:
        """The URL of a file by its absolute path, or one relative to the test's folder."""
        return f"{self.url}/files/{quote(str(self.folder / path))}"


@dataclass(frozen=True)
class LiveSandbox:
    """A sandbox behind the real server at a socket."""

    box: OneSandbox
    sandboxes: SandboxApi
    server: Server
    #: Without a slash at the end.
    base: str
    headers: dict[str, str]

    def websocket(self, path: str, **options: Any) -> connect:
        """Return a connection to a path of the sandbox."""
        headers = options.pop("headers", self.headers)
        url = f"{self.base.replace('http', 'ws', 1)}{self.box.url}{path}"
        return connect(url, additional_headers=headers, compression=None, **options)

    def host(self, port: int, box: OneSandbox | None = None) -> str:
        """The host name of a port, as the header Host has it."""
        return f"{port}-{(box or self.box).id.lower()}.{PORTS_DOMAIN}"

    async def visit(self, port: int, path: str = "/", *, method: str = "GET", **options: Any) -> httpx.Response:
        """Send a request to a port by its host name, without a key."""
        headers = {"Host": self.host(port), **options.pop("headers", {})}
        async with httpx.AsyncClient(timeout=60) as http:
            return await http.request(method, f"{self.base}{path}", headers=headers, **options)

    def visit_websocket(self, port: int, path: str = "/", **headers: str) -> connect:
        """Return a WebSocket to a port by its host name, without a key."""
        address = urlsplit(self.base)
        url = f"ws://{self.host(port)}:{address.port}{path}"
        return connect(
            url, host=address.hostname, port=address.port, additional_headers=headers, compression=None, proxy=None
        )


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the events of a stream, without comments."""
    found = []
    for block in text.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            assert [line.partition(": ")[0] for line in lines] == ["event", "data"], block
            found.append((lines[0].partition(": ")[2], json.loads(lines[1].partition(": ")[2])))
    return found


def text_of(events: Iterable[tuple[str, dict[str, Any]]], name: str) -> str:
    """Return the text of one stream's events."""
    return "".join(data["text"] for kind, data in events if kind == name)
