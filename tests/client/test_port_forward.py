"""The SDK's ways to what happens in a sandbox: forwarded ports and watched files, over the real server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from pathlib import Path

import pytest

from belljar.client import AsyncClient, Client, NotFound
from control.api.conftest import api, box, live, sandboxes  # noqa: F401 (fixtures)
from control.api.sandbox_calls import LiveSandbox
from control.api.test_sandbox_ports import program

pytestmark = pytest.mark.process


def key_of(live: LiveSandbox) -> str:  # noqa: F811
    return live.headers["Authorization"].removeprefix("Bearer ")


async def double(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.read() * 2)
    await writer.drain()


async def test_a_forwarded_port_passes_bytes_on_and_half_closes(live: LiveSandbox) -> None:  # noqa: F811
    body = b"x" * 1_000_000
    async with program(double) as port, AsyncClient(live.base, key_of(live)) as client:
        sandbox = await client.get_sandbox(live.box.id)
        async with sandbox.forward(port) as forward:
            local_port = forward.port
            for _ in range(2):
                reader, writer = await asyncio.open_connection("127.0.0.1", forward.port)
                writer.write(body)
                writer.write_eof()
                async with asyncio.timeout(60):
                    assert await reader.read() == body * 2
                writer.close()
            with pytest.raises(OSError):
                async with sandbox.forward(port, forward.port):
                    pass
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", local_port)


async def test_what_cannot_be_passed_on_is_reset_and_reported(live: LiveSandbox) -> None:  # noqa: F811
    errors: list[Exception] = []
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with AsyncClient(live.base, key_of(live)) as client:
            sandbox = await client.get_sandbox(live.box.id)
            async with sandbox.forward(unused.getsockname()[1], on_error=errors.append) as forward:
                reader, writer = await asyncio.open_connection("127.0.0.1", forward.port)
                with pytest.raises(ConnectionResetError):
                    await reader.read()
                writer.close()
    assert [getattr(error, "code", None) for error in errors] == ["port_refused"]


async def test_the_synchronous_client_forwards_in_a_thread(live: LiveSandbox) -> None:  # noqa: F811
    def talk(port: int) -> bytes:
        with Client(live.base, key_of(live)) as client, client.get_sandbox(live.box.id).forward(port) as forward:
            with socket.create_connection(("127.0.0.1", forward.port), timeout=30) as connection:
                connection.sendall(b"ab")
                connection.shutdown(socket.SHUT_WR)
                received = b""
                while data := connection.recv(100):
                    received += data
            with pytest.raises(OSError), client.get_sandbox(live.box.id).forward(port, forward.port):
                pass
            return received

    async with program(double) as port:
        before = threading.active_count()
        assert await asyncio.to_thread(talk, port) == b"abab"
        assert threading.active_count() <= before + 1  # the thread of `to_thread` itself


async def test_changes_of_files_are_yielded_by_both_clients(live: LiveSandbox) -> None:  # noqa: F811
    folder = live.box.folder

    def watch() -> list[str]:
        with Client(live.base, key_of(live)) as client:
            seen = []
            with contextlib.closing(client.get_sandbox(live.box.id).files.watch(str(folder))) as changes:
                for change in changes:
                    seen.append(change["type"])
                    if change["type"] == "ready":
                        Path(folder / "new").touch()
                    elif change["type"] == "created":
                        return seen
        return []

    assert await asyncio.to_thread(watch) == ["ready", "created"]
    async with AsyncClient(live.base, key_of(live)) as client:
        files = (await client.get_sandbox(live.box.id)).files
        async with contextlib.aclosing(files.watch(str(folder), recursive=True)) as changes:
            assert await anext(changes) == {"type": "ready"}
            (folder / "new").unlink()
            assert await anext(changes) == {"type": "removed", "path": "new"}
        with pytest.raises(NotFound) as missing:
            await anext(files.watch(f"{folder}/nothing"))
        assert missing.value.code == "file_not_found"


async def test_tokens_and_public_ports_of_the_sdk(live: LiveSandbox) -> None:  # noqa: F811
    async with AsyncClient(live.base, key_of(live)) as client:
        sandbox = await client.get_sandbox(live.box.id)
        made = await sandbox.port_token(80, lifetime_seconds=60)
        assert made["token"] in made["url"]
        assert [each["id"] for each in await sandbox.port_tokens(80)] == [made["id"]]
        await sandbox.revoke_port_token(80, made["id"])
        assert await sandbox.port_tokens(80) == []
        assert (await sandbox.set_public_ports([80]))["public_ports"] == [80]
