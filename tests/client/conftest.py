from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from belljar.client import AsyncClient
from control.api.conftest import api, box, live, sandboxes  # noqa: F401 (fixtures)
from control.api.sandbox_calls import SandboxApi
from support.served import URL


@pytest.fixture
async def client(sandboxes: SandboxApi) -> AsyncIterator[AsyncClient]:  # noqa: F811
    """A client of an API whose node's machines are processes of the agent."""
    async with AsyncClient(URL) as client:
        client.transport.http = sandboxes.http
        yield client


@pytest.fixture
def folder(sandboxes: SandboxApi) -> Path:  # noqa: F811
    """The working folder of the sandboxes' commands, on this host."""
    return sandboxes.node.folder
