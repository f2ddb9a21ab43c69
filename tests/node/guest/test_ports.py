"""Connections to ports in the guest: bytes both ways, each end on its own."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from belljar.node.guest.channel import TooManyChannels
from belljar.node.guest.port_stream import PortClosed, PortStream
from belljar.node.guest.session import MAX_CONNECTIONS, Session
from support.conversation import ConnectAgent

MIB = 1 << 20
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def until_closed(session: Session) -> None:
    """Wait until the agent has closed every channel: who has used one does not wait for that."""
    async with asyncio.timeout(10):
        while session._channels:
            await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(handle: Handler, host: str = "127.0.0.1") -> AsyncIterator[int]:
    tasks = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.ensure_future(handle(reader, writer)))

    server = await asyncio.start_server(accept, host, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def test_bytes_go_both_ways_and_a_half_close_is_one(connect_agent: ConnectAgent) -> None:
    data = os.urandom(3 * MIB)
    async with (
        connect_agent() as agent,
        agent.session() as session,
        serving(echo) as port,
        session.open_port(port) as stream,
    ):
        sending = asyncio.create_task(send(stream, data))
        assert b"".join([piece async for piece in stream]) == data
        await sending


async def send(stream: PortStream, data: bytes) -> None:
    await stream.write(data)
    await stream.close_write()


async def test_a_server_that_speaks_first_and_hangs_up(connect_agent: ConnectAgent) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    async with connect_agent() as agent, agent.session() as session, serving(greet) as port:
        for _ in range(50):
            async with session.open_port(port) as stream:
                assert b"".join([piece async for piece in stream]) == b"hello"
        await until_closed(session)


async def test_over_ipv6(connect_agent: ConnectAgent) -> None:
    if not socket.has_ipv6 or not os.path.exists("/proc/net/if_inet6"):
        pytest.skip("this host has no IPv6")
    async with (
        connect_agent() as agent,
        agent.session() as session,
        serving(echo, "::1") as port,
        session.open_port(port, ipv6=True) as stream,
    ):
        await send(stream, b"six")
        assert [piece async for piece in stream] == [b"six"]


async def test_a_port_nobody_listens_on_is_refused(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent, agent.session() as session:
        with pytest.raises(PortClosed, match="port 1: Connection refused"):
            async with session.open_port(1):
                pass
        await until_closed(session)


async def test_a_reset_is_no_end(connect_agent: ConnectAgent) -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with connect_agent() as agent, agent.session() as session, serving(reset) as port:
        with pytest.raises(PortClosed, match="reset"):
            async with session.open_port(port) as stream:
                await stream.write(b"x")
                async for _ in stream:
                    pass


async def test_a_reader_that_stops_stalls_its_own_connection_only(connect_agent: ConnectAgent) -> None:
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(bytes(65536))
            await writer.drain()

    async with (
        connect_agent() as agent,
        agent.session() as session,
        serving(flood) as flooding,
        serving(echo) as port,
        session.open_port(flooding) as stuck,
    ):
        async with session.open_port(port) as stream:
            sending = asyncio.create_task(send(stream, bytes(2 * MIB)))
            assert sum([len(piece) async for piece in stream]) == 2 * MIB
            await sending
        assert sum(len(data) for _, data in stuck._pieces) <= 32 * 1024


async def test_a_client_that_leaves_closes_the_connection(connect_agent: ConnectAgent) -> None:
    closed = asyncio.Event()

    async def wait_for_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        closed.set()

    async with connect_agent() as agent, agent.session() as session, serving(wait_for_end) as port:
        async with session.open_port(port):
            pass
        async with asyncio.timeout(10):
            await closed.wait()


async def test_connections_beyond_the_limit_are_refused_and_commands_go_on(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent, agent.session() as session, serving(echo) as port:
        async with AsyncExitStack() as stack:
            for _ in range(MAX_CONNECTIONS):
                await stack.enter_async_context(session.open_port(port))
            with pytest.raises(TooManyChannels):
                async with session.open_port(port):
                    pass
            async with session.open_command(agent.session_command("echo", "on")) as process:
                assert (await process.communicate(max_bytes=100))[1] == b"on\n"
        await until_closed(session)
