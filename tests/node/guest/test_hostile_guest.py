"""A connection to a hostile agent, which the test plays byte by byte."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from belljar.model.errors import GuestProtocolError, MachineDied, MachineError, MachineTimeout
from belljar.node.guest import wire
from belljar.node.guest.command import Command
from belljar.node.guest.connection import AgentConnection
from belljar.node.guest.frame_stream import WINDOW
from belljar.node.guest.wire import FrameType, Stream
from support.conversation import Collector
from support.examples import examples

HELLO = wire.HEADER.pack(16, FrameType.HELLO, 0, 0) + struct.pack("<HHIQ", wire.VERSION, 0, 0, 1)
STARTED = wire.HEADER.pack(4, FrameType.STARTED, 0, 0) + struct.pack("<I", 7)
EXITED = wire.HEADER.pack(40, FrameType.EXITED, 0, 0) + struct.pack("<iiIIQQQ", 0, 0, 0, 0, 1, 2, 3)
USAGE = wire.HEADER.pack(80, FrameType.USAGE, 0, 0) + bytes(80)
PONG = wire.HEADER.pack(0, FrameType.PONG, 0, 0)


def output(size: int, stream: Stream = Stream.STDOUT) -> bytes:
    return wire.HEADER.pack(size, FrameType.OUTPUT, stream, 0) + bytes(size)


def frame(kind: FrameType, payload: bytes, stream: Stream = Stream.NONE) -> bytes:
    return wire.HEADER.pack(len(payload), kind, stream, 0) + payload


def artifact(size: int, path: bytes = b"a") -> bytes:
    return frame(FrameType.ARTIFACT, struct.pack("<QI", size, 0o644) + path)


def collected(count: int, skipped: int = 0) -> bytes:
    return frame(FrameType.COLLECTED, struct.pack("<II", count, skipped))


DATA = frame(FrameType.ARTIFACT_DATA, b"xyz")


@asynccontextmanager
async def guest_that_sends(data: bytes) -> AsyncIterator[AgentConnection]:
    """A connection whose guest sends `data` whatever it receives, then nothing more, and stays connected."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=ours)
    loop = asyncio.get_running_loop()

    async def discard_input() -> None:
        while await loop.sock_recv(theirs, 1 << 16):
            pass

    tasks = [asyncio.create_task(loop.sock_sendall(theirs, data)), asyncio.create_task(discard_input())]
    try:
        yield AgentConnection(reader, writer)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        writer.close()
        theirs.close()


async def run_against(data: bytes) -> Collector:
    sink = Collector()
    async with guest_that_sends(data) as connection, asyncio.timeout(5):
        await connection.open(1)
        await connection.run(Command(argv=["x"], env={}), b"", sink, lambda started: None)
    return sink


async def test_a_guest_that_keeps_to_the_protocol_succeeds() -> None:
    sink = await run_against(HELLO + STARTED + output(10) + EXITED)
    assert sink.stdout == bytes(10)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(STARTED, id="no hello"),
        pytest.param(
            wire.HEADER.pack(16, FrameType.HELLO, 0, 0) + struct.pack("<HHIQ", 99, 0, 0, 1), id="wrong version"
        ),
        pytest.param(HELLO + HELLO, id="hello twice"),
        pytest.param(HELLO + output(1), id="output before the start"),
        pytest.param(HELLO + EXITED, id="exit before the start"),
        pytest.param(HELLO + STARTED + STARTED, id="started twice"),
        pytest.param(HELLO + STARTED + output(0), id="empty output"),
        pytest.param(HELLO + STARTED + output(1, Stream.ARTIFACTS), id="output on no stream"),
        pytest.param(HELLO + STARTED + PONG, id="an unexpected pong"),
        pytest.param(HELLO + STARTED + USAGE, id="usage that nobody asked for"),
        pytest.param(HELLO + STARTED + struct.pack("<IBBH", 1 << 30, FrameType.OUTPUT, 1, 0), id="huge frame"),
        pytest.param(HELLO + STARTED + struct.pack("<IBBH", 4, 0xEE, 0, 0), id="unknown kind"),
        pytest.param(
            HELLO + STARTED + wire.HEADER.pack(4, FrameType.STDIN_CREDIT, 0, 0) + struct.pack("<I", 1),
            id="unpaid credit",
        ),
        pytest.param(
            HELLO
            + STARTED
            + wire.HEADER.pack(40, FrameType.EXITED, 0, 0)
            + struct.pack("<iiIIQQQ", -1, 0, 0, 0, 0, 0, 0),
            id="impossible exit code",
        ),
        pytest.param(
            HELLO + STARTED + frame(FrameType.EXITED, struct.pack("<iiIIQQQ", 0, 65, 0, 0, 0, 0, 0)), id="signal 65"
        ),
        pytest.param(
            HELLO + STARTED + frame(FrameType.EXITED, struct.pack("<iiIIQQQ", 1, 9, 0, 0, 0, 0, 0)), id="both ends"
        ),
        pytest.param(HELLO + frame(FrameType.STARTED, struct.pack("<I", 0)), id="no process"),
        pytest.param(
            HELLO + frame(FrameType.FAILED, struct.pack("<II", 3, 2**32 - 1)), id="an error that linux has not"
        ),
        pytest.param(HELLO + frame(FrameType.FAILED, struct.pack("<II", 9, 2)), id="a stage that is not"),
    ],
)
async def test_a_guest_that_breaks_the_protocol_is_rejected(data: bytes) -> None:
    with pytest.raises(GuestProtocolError):
        await run_against(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (HELLO + STARTED + PONG, "unexpected PONG from guest agent"),
        (HELLO + STARTED + output(0), r"invalid OUTPUT frame \(empty, or unknown stream\)"),
        (HELLO + STARTED + HELLO, "unexpected Hello from guest agent while a command runs"),
        (HELLO + STARTED + struct.pack("<IBBH", 4, 0xEE, 0, 0), "unknown frame type 0xee"),
        (HELLO + frame(FrameType.FAILED, bytes(8)), r"invalid FAILED frame \(malformed payload\)"),
    ],
)
async def test_a_protocol_error_names_the_frame(data: bytes, message: str) -> None:
    with pytest.raises(GuestProtocolError, match=message):
        await run_against(data)


async def collect_against(data: bytes) -> tuple[wire.Collected, Collector]:
    sink = Collector()
    async with guest_that_sends(HELLO + STARTED + EXITED + data) as connection, asyncio.timeout(5):
        await connection.open(1)
        await connection.run(Command(argv=["x"], env={}), b"", sink, lambda started: None)
        return await connection.collect(["**"], sink, max_bytes=1000, max_count=2), sink


async def test_artifacts_of_a_guest_that_keeps_to_the_protocol_come() -> None:
    result, sink = await collect_against(artifact(6) + DATA + DATA + artifact(0, b"../b") + collected(2, 2**32 - 1))
    # The sink checks the path; the number of skipped files is only shown.
    assert result == wire.Collected(2, 2**32 - 1)
    assert sink.files == {"a": bytearray(b"xyzxyz"), "../b": bytearray()}


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(artifact(1001), id="larger than requested"),
        pytest.param(artifact(900) + frame(FrameType.ARTIFACT_DATA, bytes(900)) + artifact(200), id="larger together"),
        pytest.param(artifact(1 << 63), id="a size that is no size"),
        pytest.param(artifact(2**64 - 1), id="the largest number"),
        pytest.param(artifact(0) * 3, id="more than requested"),
        pytest.param(artifact(0, b""), id="no path"),
        pytest.param(artifact(0, b"a\0b"), id="a zero in the path"),
        pytest.param(artifact(0, b"x" * 1025), id="a path that is too long"),
        pytest.param(artifact(2) + DATA, id="more bytes than announced"),
        pytest.param(artifact(5) + DATA + artifact(1), id="another in the middle of one"),
        pytest.param(artifact(5) + DATA + collected(1), id="the end in the middle of one"),
        pytest.param(DATA, id="bytes of none"),
        pytest.param(frame(FrameType.ARTIFACT_DATA, b""), id="no bytes"),
        pytest.param(artifact(3) + frame(FrameType.ARTIFACT_DATA, b"xyz", Stream.STDOUT), id="bytes with a stream"),
        pytest.param(collected(1), id="fewer than counted"),
        pytest.param(artifact(0) + collected(0), id="more than counted"),
        pytest.param(frame(FrameType.COLLECTED, bytes(7)), id="half a count"),
        pytest.param(STARTED, id="a start"),
        pytest.param(EXITED, id="a second end"),
        pytest.param(output(1), id="output after the end"),
        pytest.param(frame(FrameType.FAILED, struct.pack("<II", 3, 2)), id="a failure"),
        pytest.param(frame(FrameType.FAILED, struct.pack("<II", 3, 2**32 - 1)), id="a failure with no error"),
        pytest.param(PONG, id="an unexpected pong"),
        pytest.param(HELLO, id="a greeting"),
        pytest.param(frame(FrameType.PREPARED, b""), id="prepared"),
        pytest.param(frame(FrameType.SUSPENDED, b""), id="suspended"),
        pytest.param(frame(FrameType.RESTED, b""), id="rested"),
        pytest.param(frame(FrameType.STDIN_CREDIT, struct.pack("<I", 1)), id="credit for nothing"),
        pytest.param(struct.pack("<IBBH", 0, FrameType.PONG, 0, 1), id="a header with a bit too many"),
        pytest.param(struct.pack("<IBBH", 0, FrameType.COLLECT, 0, 0), id="a frame of the host's"),
        pytest.param(b"\xff" * 64, id="ones"),
        pytest.param(bytes(64), id="zeros"),
    ],
)
async def test_a_guest_that_forges_artifacts_is_rejected(data: bytes) -> None:
    with pytest.raises(GuestProtocolError):
        await collect_against(data)


async def test_a_guest_that_exceeds_its_credit_is_rejected() -> None:
    frames = (WINDOW // wire.MAX_PAYLOAD) * output(wire.MAX_PAYLOAD)

    class Stuck(Collector):
        async def write(self, stream_or_data: Stream | bytes, data: bytes | None = None) -> None:
            """Takes everything, so that credit flows; the guest does not wait for it."""

    async with guest_that_sends(HELLO + STARTED + frames + output(wire.MAX_PAYLOAD, Stream.STDERR) * 5) as connection:
        await connection.open(1)
        # A host that grants no more.
        connection._frames.grant = lambda stream, size: asyncio.sleep(0)  # type: ignore[assignment,misc,return-value]
        with pytest.raises(GuestProtocolError, match="granted"):
            await connection.run(Command(argv=["x"], env={}), b"", Stuck(), lambda started: None)


async def test_a_silent_guest_times_out() -> None:
    async with guest_that_sends(b"") as connection:
        with pytest.raises(MachineTimeout):
            await connection.open(0.05)


async def test_a_guest_that_hangs_up_is_a_dead_machine() -> None:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    theirs.close()
    with pytest.raises(MachineDied, match="lost the connection to the guest agent"):
        await AgentConnection(reader, writer).open(1)
    writer.close()


@settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from([HELLO, STARTED, output(3), EXITED, PONG, b"\0", b"\xff" * 9]), max_size=6))
def test_whatever_the_guest_sends_a_command_ends_with_an_exit_or_one_clear_error(pieces: list[bytes]) -> None:
    async def scenario() -> None:
        async with guest_that_sends(HELLO + b"".join(pieces)) as connection:
            await connection.open(1)
            try:
                async with asyncio.timeout(0.05):
                    await connection.run(Command(argv=["x"], env={}), b"", Collector(), lambda started: None)
            except (MachineError, TimeoutError):
                pass

    asyncio.run(scenario())
