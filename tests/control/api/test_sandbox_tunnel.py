"""Tunnels to ports of a sandbox over the real server: bytes both ways, half-closed, and lost."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from control.api.sandbox_calls import LiveSandbox
from control.api.test_sandbox_ports import program

pytestmark = pytest.mark.process

END = json.dumps({"type": "end"})


async def received(connection: ClientConnection) -> tuple[bytes, list[dict[str, Any]], int]:
    """Return the bytes, the JSON messages and the close code, until the server closes."""
    data, messages = b"", []
    async with asyncio.timeout(60):
        try:
            while True:
                message = await connection.recv()
                if isinstance(message, bytes):
                    data += message
                else:
                    messages.append(json.loads(message))
        except ConnectionClosed as closed:
            assert closed.rcvd is not None
            return data, messages, closed.rcvd.code


async def test_each_direction_has_an_end_of_its_own(live: LiveSandbox) -> None:
    async def reverse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello ")
        data = await reader.read()  # to the end of the other direction
        writer.write(data[::-1])
        await writer.drain()

    body = bytes(range(256)) * 8192
    async with program(reverse) as port, live.websocket(f"/ports/{port}/tunnel") as connection:
        assert await connection.recv() == b"hello "
        for at in range(0, len(body), 300_000):
            await connection.send(body[at : at + 300_000])
        await connection.send(END)
        data, messages, code = await received(connection)
        assert data == body[::-1] and (messages, code) == ([{"type": "end"}], 1000)


async def test_a_program_that_ends_first_still_reads(live: LiveSandbox) -> None:
    read = asyncio.Event()

    async def end_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write_eof()
        assert await reader.read() == b"late"
        read.set()

    async with program(end_first) as port, live.websocket(f"/ports/{port}/tunnel") as connection:
        assert json.loads(await connection.recv()) == {"type": "end"}
        await connection.send(b"late")
        await connection.send(END)
        assert (await received(connection))[2] == 1000
        await asyncio.wait_for(read.wait(), 10)


async def test_a_lost_connection_is_reported_and_a_wrong_message_refused(live: LiveSandbox) -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    async with program(reset) as port:
        async with live.websocket(f"/ports/{port}/tunnel") as connection:
            await connection.send(b"x")
            _, messages, code = await received(connection)
            assert (messages[-1]["type"], messages[-1]["code"], code) == ("error", "port_refused", 1011)
        for wrong in ("text", '{"type": "start"}', "[" * 10_000):
            async with live.websocket(f"/ports/{port}/tunnel") as connection:
                await connection.send(wrong)
                _, messages, code = await received(connection)
                assert (messages[-1]["code"], code) == ("invalid_request", 1008)


async def test_a_client_that_leaves_ends_the_connection_in_the_sandbox(live: LiveSandbox) -> None:
    gone = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"begun")
        await reader.read()
        gone.set()

    async with program(wait) as port:
        async with live.websocket(f"/ports/{port}/tunnel") as connection:
            assert await connection.recv() == b"begun"
        await asyncio.wait_for(gone.wait(), 10)


async def test_a_tunnel_needs_a_program_and_a_key_of_the_project(live: LiveSandbox) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        _, secret = await live.sandboxes.served.services.keys.create("other", "test", role="owner")
        for headers, status in (
            (live.headers, 502),
            ({"Authorization": f"Bearer {secret}"}, 404),
            ({}, 401),
            ({**live.headers, "Origin": "https://evil.example"}, 502),  # no page sends Authorization
        ):
            with pytest.raises(InvalidStatus) as refused:
                async with live.websocket(f"/ports/{port}/tunnel", headers=headers):
                    pass
            assert refused.value.response.status_code == status
