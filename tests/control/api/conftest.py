from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from control.api.sandbox_calls import OneSandbox, SandboxApi
from support.registered_images import register
from support.sandbox_node import AgentNode
from support.served import Served, served


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Served]:
    """An application with the image python, an upload limit of 1 MB, and no worker."""
    if shutil.which("mkfs.erofs") is None:
        pytest.skip("needs erofs-utils")
    register(tmp_path, "python")
    async with served(tmp_path, max_upload_mb=1) as api:
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
