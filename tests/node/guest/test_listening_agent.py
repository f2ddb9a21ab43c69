"""The agent where it listens for its host, as it does on vsock: the same process, over a listening socket of ours."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from belljar.node.guest.command import Command
from belljar.node.guest.connection import AgentConnection
from support.conversation import Collector

pytestmark = pytest.mark.process


@dataclass
class Listening:
    """A process of the agent and where it listens."""

    process: subprocess.Popen[bytes]
    address: str

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AgentConnection]:
        reader, writer = await asyncio.open_unix_connection(self.address, limit=1 << 20)
        try:
            yield AgentConnection(reader, writer)
        finally:
            writer.close()

    async def exit_code(self) -> int:
        return await asyncio.to_thread(self.process.wait, 10)


@pytest.fixture
def listening(sanitized_agent: Path, tmp_path: Path) -> Iterator[Listening]:
    with _listener(tmp_path / "socket") as listener:
        process = subprocess.Popen(
            [sanitized_agent, "--listen", str(listener.fileno()), str(tmp_path)],
            pass_fds=[listener.fileno()],
            stderr=subprocess.PIPE,
        )
    try:
        yield Listening(process, str(tmp_path / "socket"))
    finally:
        process.kill()
        _, stderr = process.communicate(timeout=10)
        assert b"ERROR" not in stderr and b"runtime error" not in stderr, stderr.decode()


@contextmanager
def _listener(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(16)  # a full queue refuses in a way that asyncio takes for a connection
        yield listener


async def _run_true(connection: AgentConnection, folder: Path) -> int:
    command = Command(argv=["/bin/true"], env={}, cwd=str(folder), isolated=False)
    return (await connection.run(command, b"", Collector(), lambda _: None)).exit_code


async def test_it_waits_for_its_host_and_serves_it(listening: Listening, tmp_path: Path) -> None:
    async with listening.connection() as connection:
        await connection.open(10)
        assert await _run_true(connection, tmp_path) == 0


async def test_it_ends_with_the_only_connection_that_it_has(listening: Listening) -> None:
    async with listening.connection() as connection:
        await connection.open(10)
    assert await listening.exit_code() == 0


async def test_a_suspended_one_outlives_its_connection_and_serves_the_next(
    listening: Listening, tmp_path: Path
) -> None:
    async with listening.connection() as connection:
        await connection.open(10)
        await connection.suspend()
    async with listening.connection() as connection:
        await connection.resume(10)
        assert await _run_true(connection, tmp_path) == 0
    assert await listening.exit_code() == 0


async def test_a_suspended_one_outlives_many_connections_that_send_nothing(
    listening: Listening, tmp_path: Path
) -> None:
    async with listening.connection() as connection:
        await connection.open(10)
        await connection.suspend()
    for _ in range(5):
        async with listening.connection():
            pass
    async with listening.connection() as connection:
        await connection.resume(10)
        assert await _run_true(connection, tmp_path) == 0


async def test_half_a_frame_of_a_lost_connection_is_forgotten(listening: Listening, tmp_path: Path) -> None:
    async with listening.connection() as connection:
        await connection.open(10)
        await connection.suspend()
    _, writer = await asyncio.open_unix_connection(listening.address)
    writer.write(b"\x40\x00\x00")
    await writer.drain()
    writer.close()
    async with listening.connection() as connection:
        await connection.resume(10)
        assert await _run_true(connection, tmp_path) == 0
