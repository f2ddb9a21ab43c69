"""A session with a hostile agent, which the test plays byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from belljar.model.errors import GuestProtocolError, MachineError
from belljar.node.guest import wire
from belljar.node.guest.channel import IDLE_WINDOW, ChannelBroken
from belljar.node.guest.command import Command, CommandFailed
from belljar.node.guest.file_records import HEADER
from belljar.node.guest.files import FileFailed, Files
from belljar.node.guest.port_stream import PortClosed
from belljar.node.guest.process import OutputTooLarge, ProcessEnded
from belljar.node.guest.session import Session, SessionRequest
from belljar.node.guest.wire import FrameType, Stream
from node.guest.test_hostile_guest import HELLO, guest_that_sends
from support.examples import examples

WIDE = struct.pack("<I", wire.WIDE_STDIN_WINDOW - wire.STDIN_WINDOW)


def frame(kind: FrameType, payload: bytes = b"", *, channel: int = 1, stream: Stream = Stream.NONE) -> bytes:
    return wire.HEADER.pack(len(payload), kind, stream, channel) + payload


SERVING = frame(FrameType.SERVING, channel=0)
STARTED = frame(FrameType.STARTED, struct.pack("<I", 7))
EXITED = frame(FrameType.EXITED, struct.pack("<iiIIQQQ", 0, 0, 0, 0, 1, 2, 3))
FAILED = frame(FrameType.FAILED, struct.pack("<II", 3, 2))
CLOSED = frame(FrameType.CLOSED, struct.pack("<I", 0))
CONNECTED = frame(FrameType.CONNECTED)
END = frame(FrameType.END, stream=Stream.STDOUT)
USAGE = frame(FrameType.USAGE, bytes(80), channel=0)
CHANNEL = frame(FrameType.CHANNEL, struct.pack("<IIII", 7, 0, 100, 0))


def output(size: int, *, channel: int = 1, stream: Stream = Stream.STDOUT) -> bytes:
    return frame(FrameType.OUTPUT, bytes(size), channel=channel, stream=stream)


async def in_session(data: bytes, use: Callable[[Session], Awaitable[object]]) -> object:
    """Use a session whose guest sends the bytes; raise what ended the conversation, if that did."""
    async with asyncio.timeout(5), guest_that_sends(HELLO + SERVING + data) as connection:
        await connection.open(1)
        async with connection.open_session(SessionRequest()) as session:
            try:
                return await use(session)
            except ChannelBroken:
                await session.wait_closed()
                raise


async def run(session: Session) -> object:
    process = await session.start(Command(argv=["x"], env={}))
    return await process.communicate(max_bytes=1 << 20)


async def connect(session: Session) -> object:
    async with session.open_port(80) as stream:
        await stream.close_write()
        return [piece async for piece in stream]


async def wait(session: Session) -> object:
    await session.wait_closed()
    return None


async def test_a_guest_that_keeps_to_the_protocol_succeeds() -> None:
    # The frames wait in the socket until the channel is open: the host reads only then.
    result = await in_session(b"", lambda session: asyncio.sleep(0))
    assert result is None


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(STARTED, id="a channel that is not open"),
        pytest.param(CLOSED, id="the end of a channel that is not open"),
        pytest.param(output(1, channel=60_000), id="output of a channel that is not open"),
        pytest.param(USAGE, id="usage that nobody wants"),
        pytest.param(frame(FrameType.SUSPENDED, channel=0), id="suspended"),
        pytest.param(SERVING, id="serving twice"),
        pytest.param(frame(FrameType.STARTED, struct.pack("<I", 7), channel=0), id="a start of the conversation"),
        pytest.param(frame(FrameType.HELLO, bytes(16), channel=0), id="hello"),
        pytest.param(frame(FrameType.PONG, channel=0), id="an unexpected pong"),
        pytest.param(frame(FrameType.PONG), id="a pong of a channel"),
        pytest.param(frame(FrameType.ARTIFACT_DATA, b"x", channel=0), id="an artifact"),
        pytest.param(CHANNEL, id="a channel that the host has not opened"),
        pytest.param(frame(FrameType.EXEC), id="a frame of the host's"),
        pytest.param(b"\xff" * 64, id="ones"),
        pytest.param(bytes(64), id="zeros"),
    ],
)
async def test_a_frame_that_may_not_come_ends_the_conversation(data: bytes) -> None:
    with pytest.raises(GuestProtocolError):
        await in_session(data, wait)


async def answer(session: Session, data: bytes, use: Callable[[Session], Awaitable[object]]) -> object:
    """Let the guest send bytes as soon as the host has opened its first channel."""
    opened = session._open

    async def open_and_answer(channel, *request):  # type: ignore[no-untyped-def]
        await opened(channel, *request)
        session._frames._reader.feed_data(data)

    session._open = open_and_answer  # type: ignore[method-assign]
    return await use(session)


@pytest.mark.parametrize(
    ("data", "use"),
    [
        pytest.param(EXITED, run, id="an exit before the start"),
        pytest.param(output(1), run, id="output before the start"),
        pytest.param(CLOSED, run, id="closed without an end"),
        pytest.param(STARTED + CLOSED, run, id="closed while it runs"),
        pytest.param(STARTED + STARTED, run, id="started twice"),
        pytest.param(STARTED + FAILED, run, id="failed after the start"),
        pytest.param(STARTED + EXITED + EXITED, run, id="ended twice"),
        pytest.param(STARTED + output(IDLE_WINDOW) * 20, run, id="more than its credit"),
        pytest.param(STARTED + output(1, stream=Stream.ARTIFACTS), run, id="output on no stream"),
        pytest.param(STARTED + frame(FrameType.STDIN_CREDIT, struct.pack("<I", 9)), run, id="unpaid credit"),
        pytest.param(STARTED + frame(FrameType.STDIN_CREDIT, WIDE) * 2, run, id="a wide window twice"),
        pytest.param(STARTED + CONNECTED, run, id="a command that is connected"),
        pytest.param(STARTED + END, run, id="the end of a command's stream"),
        pytest.param(STARTED + frame(FrameType.CLOSED, b""), run, id="closed without an errno"),
        pytest.param(frame(FrameType.CLOSED, struct.pack("<I", 5000)), connect, id="an errno that linux has not"),
        pytest.param(CLOSED, connect, id="closed in order before it was connected"),
        pytest.param(CONNECTED + CONNECTED, connect, id="connected twice"),
        pytest.param(CONNECTED + END + END, connect, id="the end twice"),
        pytest.param(CONNECTED + END + output(1), connect, id="output after the end"),
        pytest.param(CONNECTED + output(1, stream=Stream.STDERR), connect, id="standard error of a connection"),
        pytest.param(STARTED, connect, id="a connection that is started"),
    ],
)
async def test_a_channel_that_breaks_the_protocol_ends_the_conversation(
    data: bytes, use: Callable[[Session], Awaitable[object]]
) -> None:
    async def break_off(session: Session) -> object:
        with contextlib.suppress(ChannelBroken, ProcessEnded, MachineError):
            await answer(session, data, use)
        return await session.wait_closed()

    with pytest.raises(GuestProtocolError):
        await in_session(b"", break_off)


async def test_what_breaks_off_is_never_an_end() -> None:
    async def lose(session: Session) -> object:
        session._frames._reader.feed_eof()
        return await run(session)

    with pytest.raises((ChannelBroken, MachineError)):
        await in_session(b"", lose)


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(HEADER.pack(9, ord("f"), 0, 0, 0, 0, 0, 0, 0, 0), id="an unknown kind"),
        pytest.param(HEADER.pack(1, 0, 0, 0, 0, 0, 0, 0, 0, 0), id="an unknown type"),
        pytest.param(HEADER.pack(1, ord("f"), 0xFFFF, 0, 0, 0, 0, 0, 0, 0), id="a mode that is none"),
        pytest.param(HEADER.pack(1, ord("f"), 0, 0, 0, 5000, 0, 0, 0, 0), id="a path too long"),
        pytest.param(HEADER.pack(1, ord("f"), 0, 0, 0, 0, 0, 1 << 63, 0, 0), id="a size that is none"),
        pytest.param(HEADER.pack(1, ord("f"), 0, 0, 0, 0, 0, 0, 0, 1), id="something where nothing belongs"),
        pytest.param(HEADER.pack(1, ord("f"), 0, 0, 0, 3, 0, 0, 0, 0) + b"a\0b", id="a zero in the path"),
        pytest.param(HEADER.pack(1, ord("f"), 0, 0, 0, 9, 0, 0, 0, 0) + b"abc", id="half a path"),
        pytest.param(b"\1", id="half a record"),
        pytest.param(b"", id="nothing"),
    ],
)
async def test_a_record_that_is_none_is_an_error_of_the_operation(record: bytes) -> None:
    async def stat(session: Session) -> object:
        data = frame(FrameType.OUTPUT, record, stream=Stream.STDOUT) if record else b""
        return await answer(session, STARTED + data + EXITED + CLOSED, lambda _: Files(session).stat("x"))

    with pytest.raises((GuestProtocolError, ChannelBroken)):
        async with asyncio.timeout(5), guest_that_sends(HELLO + SERVING) as connection:
            await connection.open(1)
            async with connection.open_session(SessionRequest()) as session:
                await stat(session)


async def watch(files: Files) -> object:
    async with files.watch("x") as events:
        return [event async for event in events]


async def archive(files: Files) -> object:
    return [piece async for piece in files.archive("x")]


ENTRY = HEADER.pack(1, ord("f"), 0o644, 0, 0, 1, 0, 0, 0, 0) + b"x"
LINK_OUT = HEADER.pack(1, ord("l"), 0o777, 0, 0, 4, 1, 0, 0, 0) + b"../x/"


@pytest.mark.parametrize(
    ("records", "use"),
    [
        pytest.param(ENTRY + ENTRY, watch, id="a file where an event belongs"),
        pytest.param(ENTRY, Files.ports, id="a file where a port belongs"),
        pytest.param(LINK_OUT, archive, id="an entry outside the archived folder"),
        pytest.param(LINK_OUT.replace(b"../x", b"/etc"), archive, id="an absolute entry of an archive"),
    ],
)
async def test_a_record_that_does_not_belong_there_breaks_the_operation_off(
    records: bytes, use: Callable[[Files], Awaitable[object]]
) -> None:
    data = STARTED + frame(FrameType.OUTPUT, records, stream=Stream.STDOUT) + EXITED + CLOSED
    async with asyncio.timeout(5), guest_that_sends(HELLO + SERVING) as connection:
        await connection.open(1)
        async with connection.open_session(SessionRequest()) as session:
            with pytest.raises(ChannelBroken, match=r"described no|outside its folder"):
                await answer(session, data, lambda _: use(Files(session)))


async def test_many_tiny_pieces_take_no_more_memory_than_they_have_bytes() -> None:
    async def flood(session: Session) -> object:
        pieces = (output(1) + output(1, stream=Stream.STDERR)) * 2000
        process = await answer(session, STARTED + pieces, lambda _: session.start(Command(argv=["x"], env={})))
        while sum(process._unread.values()) < 4000:  # type: ignore[attr-defined]
            await asyncio.sleep(0)
        return len(process._pieces)  # type: ignore[attr-defined]

    assert await in_session(b"", flood) == 256


@settings(max_examples=examples(100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from([STARTED, output(3), EXITED, CLOSED, FAILED, CONNECTED, END, USAGE, b"\0", b"\xff" * 9]),
        max_size=6,
    ),
    st.sampled_from([run, connect]),
)
def test_whatever_the_guest_sends_a_channel_ends_or_is_broken(
    pieces: list[bytes], use: Callable[[Session], Awaitable[object]]
) -> None:
    async def scenario() -> None:
        async with guest_that_sends(HELLO + SERVING) as connection:
            await connection.open(1)
            async with connection.open_session(SessionRequest()) as session:
                session._state.reply_seconds = 0.05
                try:
                    async with asyncio.timeout(0.1):
                        await answer(session, b"".join(pieces), use)
                except (MachineError, TimeoutError, ChannelBroken, CommandFailed, PortClosed):
                    pass
                except (FileFailed, OutputTooLarge, ProcessEnded):
                    pass

    asyncio.run(scenario())
