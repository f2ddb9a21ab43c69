"""Calls of a session that are cancelled, and operations that do not end by themselves: nothing of them stays."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable

import pytest

from belljar.model.errors import GuestProtocolError, MachineError, MachineTimeout
from belljar.node.guest.channel import ChannelBroken
from belljar.node.guest.session import Session
from support.conversation import ConnectAgent


async def wait_until_closed(session: Session) -> None:
    async with asyncio.timeout(10):
        while session._channels:
            await asyncio.sleep(0.01)


async def cancel_behind_request(session: Session, call: Callable[[], Awaitable[object]]) -> None:
    """Cancel a call that has sent its request and waits until the agent reads it."""
    send, sent = session._state._send, asyncio.Event()

    async def send_and_wait(data: bytes) -> None:
        await send(data)
        sent.set()
        await asyncio.sleep(60)

    session._state._send = send_and_wait
    task = asyncio.ensure_future(call())
    await sent.wait()
    session._state._send = send
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_start_that_is_cancelled_behind_its_request_leaves_no_command(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent, agent.session() as session:
        command = agent.session_command("sh", "-c", "echo $$ >pid; exec sleep 600")
        await cancel_behind_request(session, lambda: session.start(command))
        await wait_until_closed(session)
        assert not session.processes


async def test_a_connection_that_is_cancelled_behind_its_request_is_closed(connect_agent: ConnectAgent) -> None:
    accepted = asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with connect_agent() as agent, agent.session() as session:

        async def connect() -> None:
            async with session.open_port(port):
                pass

        await cancel_behind_request(session, connect)
        await wait_until_closed(session)
        await accepted.wait()
    server.close()


async def test_a_file_operation_that_a_program_stopped_is_ended_by_force(connect_agent: ConnectAgent) -> None:
    """Programs of the sandbox have its user, and may stop its operations."""
    async with connect_agent() as agent, agent.session() as session:
        with pytest.raises(ChannelBroken, match="was closed"):
            async with agent.files(session).open_write("file", atomic=True) as writer:
                await writer.write(b"first")
                os.kill(writer._process.pid, signal.SIGSTOP)
                await asyncio.wait_for(writer._process.close(), 10)
                await writer.write(b"second")
        assert not (agent.folder / "file").exists() and not session._channels


async def test_an_agent_that_does_not_close_a_channel_is_an_error_with_a_deadline(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent, agent.session() as session:
        process = await session.start(agent.session_command("sleep", "600"))
        os.kill(agent.process.pid, signal.SIGSTOP)
        session._state.reply_seconds = 0.2
        try:
            with pytest.raises(MachineTimeout, match=r"did not close a channel within 0\.2 s"):
                await process.close()
        finally:
            os.kill(agent.process.pid, signal.SIGCONT)


async def test_a_message_that_cannot_be_handled_ends_the_session_and_not_the_waiting_callers_patience(
    connect_agent: ConnectAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect_agent() as agent, agent.session() as session:
        process = await session.start(agent.session_command("cat"))

        def fail(number: int, message: object) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(session, "_handle", fail)
        await process.write(b"some bytes")
        with pytest.raises(ChannelBroken, match="the session failed"):
            await asyncio.wait_for(process.read(), 5)
        with pytest.raises(MachineError) as ended:
            await session.wait_closed()
        assert isinstance(ended.value, GuestProtocolError)
