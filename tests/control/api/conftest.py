from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from belljar.control.api.server import Server
from control.api.sandbox_calls import PORTS_DOMAIN, LiveSandbox, OneSandbox, SandboxApi
from support.registered_images import register
from support.sandbox_node import AgentNode
from support.served import Served, served


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Served]:
    """An application with the image python, an upload limit of 1 MB, host names of ports, and no worker."""
    if shutil.which("mkfs.erofs") is None:
        pytest.skip("needs erofs-utils")
    register(tmp_path, "python")
    async with served(tmp_path, max_upload_mb=1, sandbox_domain=PORTS_DOMAIN) as api:
        yield api


@pytest.fixture
async def sandboxes(api: Served, tmp_path: Path) -> AsyncIterator[SandboxApi]:
    """The API with a node whose machines are processes of the agent, and a client of the project `tenant`."""
    folder = tmp_path / "box"
    folder.mkdir()
    node = AgentNode(api.services.sandbox_queue.link, folder)
    async with node.running(), await api.caller_of("tenant") as http:
        yield SandboxApi(api, node, http)


@pytest.fixture
async def box(sandboxes: SandboxApi) -> OneSandbox:
    """One running sandbox."""
    return await sandboxes.create(env={"A": "1"})


@pytest.fixture
async def live(sandboxes: SandboxApi, box: OneSandbox) -> AsyncIterator[LiveSandbox]:
    """The same sandbox behind the real server at a socket."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        server = Server(sandboxes.served.services)
        task = asyncio.create_task(server.serve([listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        headers = {"Authorization": sandboxes.http.headers["authorization"]}
        try:
            async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as http:
                yield LiveSandbox(OneSandbox(http, box.id, box.folder), sandboxes, server, url, headers)
        finally:
            server.should_exit = True
            async with asyncio.timeout(30):
                await task
