"""What a session does with an agent that lies: the guest is played by the test, byte by byte."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from belljar.errors import GuestProtocolError, MachineDied, MachineError, MachineTimeout
from belljar.guest import wire
from belljar.guest.command import Command
from belljar.guest.session import WINDOW, Session
from belljar.guest.wire import Kind, Stream
from guest.conversation import Collector

HELLO = wire.HEADER.pack(16, Kind.HELLO, 0, 0) + struct.pack("<HHIQ", wire.VERSION, 0, 0, 1)
STARTED = wire.HEADER.pack(4, Kind.STARTED, 0, 0) + struct.pack("<I", 7)
EXITED = wire.HEADER.pack(40, Kind.EXITED, 0, 0) + struct.pack("<iiIIQQQ", 0, 0, 0, 0, 1, 2, 3)
PONG = wire.HEADER.pack(0, Kind.PONG, 0, 0)


def output(size: int, stream: Stream = Stream.STDOUT) -> bytes:
    return wire.HEADER.pack(size, Kind.OUTPUT, stream, 0) + bytes(size)


@asynccontextmanager
async def guest_that_says(data: bytes) -> AsyncIterator[Session]:
    """A session whose guest sends `data` whatever it is told, and then nothing more, but stays."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=ours)
    loop = asyncio.get_running_loop()

    async def swallow() -> None:
        while await loop.sock_recv(theirs, 1 << 16):
            pass

    tasks = [asyncio.create_task(loop.sock_sendall(theirs, data)), asyncio.create_task(swallow())]
    try:
        yield Session(reader, writer)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        writer.close()
        theirs.close()


async def run_against(data: bytes) -> Collector:
    sink = Collector()
    async with guest_that_says(data) as session, asyncio.timeout(5):
        await session.open(1)
        await session.run(Command(argv=["x"], env={}), b"", sink, lambda started: None)
    return sink


async def test_a_guest_that_keeps_to_the_protocol_is_heard() -> None:
    sink = await run_against(HELLO + STARTED + output(10) + EXITED)
    assert sink.stdout == bytes(10)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(STARTED, id="no hello"),
        pytest.param(wire.HEADER.pack(16, Kind.HELLO, 0, 0) + struct.pack("<HHIQ", 99, 0, 0, 1), id="wrong version"),
        pytest.param(HELLO + HELLO, id="hello twice"),
        pytest.param(HELLO + output(1), id="output before the start"),
        pytest.param(HELLO + EXITED, id="exit before the start"),
        pytest.param(HELLO + STARTED + STARTED, id="started twice"),
        pytest.param(HELLO + STARTED + output(0), id="empty output"),
        pytest.param(HELLO + STARTED + output(1, Stream.ARTIFACTS), id="output on no stream"),
        pytest.param(HELLO + STARTED + PONG, id="an answer to no question"),
        pytest.param(HELLO + STARTED + struct.pack("<IBBH", 1 << 30, Kind.OUTPUT, 1, 0), id="huge frame"),
        pytest.param(HELLO + STARTED + struct.pack("<IBBH", 4, 0xEE, 0, 0), id="unknown kind"),
        pytest.param(
            HELLO + STARTED + wire.HEADER.pack(4, Kind.STDIN_CREDIT, 0, 0) + struct.pack("<I", 1), id="unpaid credit"
        ),
        pytest.param(
            HELLO + STARTED + wire.HEADER.pack(40, Kind.EXITED, 0, 0) + struct.pack("<iiIIQQQ", -1, 0, 0, 0, 0, 0, 0),
            id="impossible exit code",
        ),
    ],
)
async def test_a_guest_that_breaks_the_protocol_is_refused(data: bytes) -> None:
    with pytest.raises(GuestProtocolError):
        await run_against(data)


async def test_a_guest_that_sends_more_than_it_was_granted_is_refused() -> None:
    frames = (WINDOW // wire.MAX_PAYLOAD) * output(wire.MAX_PAYLOAD)

    class Stuck(Collector):
        async def write(self, stream_or_data: Stream | bytes, data: bytes | None = None) -> None:
            """Takes everything, so that credit flows; the guest does not wait for it."""

    async with guest_that_says(HELLO + STARTED + frames + output(wire.MAX_PAYLOAD, Stream.STDERR) * 5) as session:
        await session.open(1)
        session._grant = lambda stream, size: asyncio.sleep(0)  # type: ignore[assignment,misc] # a host that grants no more
        with pytest.raises(GuestProtocolError, match="granted"):
            await session.run(Command(argv=["x"], env={}), b"", Stuck(), lambda started: None)


async def test_a_guest_that_says_nothing_is_given_up() -> None:
    async with guest_that_says(b"") as session:
        with pytest.raises(MachineTimeout):
            await session.open(0.05)


async def test_a_guest_that_hangs_up_is_a_dead_machine() -> None:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    theirs.close()
    with pytest.raises(MachineDied):
        await Session(reader, writer).open(1)
    writer.close()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from([HELLO, STARTED, output(3), EXITED, PONG, b"\0", b"\xff" * 9]), max_size=6))
def test_whatever_the_guest_says_a_session_ends_with_an_exit_or_one_clear_error(pieces: list[bytes]) -> None:
    async def scenario() -> None:
        async with guest_that_says(HELLO + b"".join(pieces)) as session:
            await session.open(1)
            try:
                async with asyncio.timeout(0.05):
                    await session.run(Command(argv=["x"], env={}), b"", Collector(), lambda started: None)
            except (MachineError, TimeoutError):
                pass

    asyncio.run(scenario())
