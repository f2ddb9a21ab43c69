"""The real agent as a process on one end of a socketpair, a real connection on the other: no machine needed."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from belljar.node.guest.connection import AgentConnection
from support.conversation import AGENT, PREFORK, ConnectAgent, ConnectedAgent, compile_with_agent


@pytest.fixture(scope="session")
def sanitized_agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent with the address and undefined-behaviour sanitizers; any finding ends it with an error."""
    binary = tmp_path_factory.mktemp("agent") / "agent"
    compile_with_agent(binary, AGENT / "main.c")
    return binary


@pytest.fixture
def connect_agent(sanitized_agent: Path, tmp_path: Path) -> ConnectAgent:
    """Return a function that connects to a new agent, which must exit in the end without a sanitizer's finding."""

    @asynccontextmanager
    async def open_connected_agent() -> AsyncIterator[ConnectedAgent]:
        ours, theirs = socket.socketpair()
        process = subprocess.Popen(
            [sanitized_agent, "--fd", str(theirs.fileno()), str(PREFORK)],
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
        )
        theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
        connection = AgentConnection(reader, writer)
        try:
            await connection.open(10)
            yield ConnectedAgent(connection, process, tmp_path)
        finally:
            writer.close()
            try:
                _, stderr = await asyncio.to_thread(process.communicate, timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            assert b"ERROR" not in stderr and b"runtime error" not in stderr, stderr.decode()

    return open_connected_agent
