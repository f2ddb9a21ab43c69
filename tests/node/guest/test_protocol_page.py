"""docs/protocol.md agrees with the code: version, header, frame types, flags, stages, streams and every limit."""

from __future__ import annotations

import re

from belljar.node.guest import channel, connection, frame_stream, session, wire
from belljar.node.guest.wire import FrameType, RunFlag, Stage, Stream
from support.conversation import AGENT
from support.paths import ROOT

PAGE = (ROOT / "docs/protocol.md").read_text()
#: The page without line ends: a sentence may be broken anywhere.
TEXT = " ".join(PAGE.split())
FRAME_ROW = re.compile(r"^\| (0x[0-9A-F]{2}) \| `([A-Z_]+)` \| (host|agent) \| (.+) \|$", re.M)


def payload_of(frame_type: FrameType) -> str:
    """Return the payload column of a frame type."""
    (payload,) = [payload for number, _, _, payload in FRAME_ROW.findall(PAGE) if int(number, 16) == frame_type]
    return payload


def test_the_version_is_that_of_the_code() -> None:
    assert re.search(r"^Version (\d+)\.", PAGE, re.M)[1] == str(wire.VERSION)  # type: ignore[index]


def test_the_table_has_every_frame_type_with_its_number_and_direction() -> None:
    rows = [(int(number, 16), name, sender) for number, name, sender, _ in FRAME_ROW.findall(PAGE)]
    expected = [(each.value, each.name, "agent" if each >= FrameType.HELLO else "host") for each in FrameType]
    assert rows == expected


def test_the_direction_is_bit_7_of_the_type() -> None:
    assert "below 0x80 from the host, from 0x80 up from the agent" in PAGE
    assert [each.name for each in FrameType if (each >= 0x80) != (each >= FrameType.HELLO)] == []


def test_the_header_is_that_of_the_code() -> None:
    assert wire.HEADER.format == "<IBBH"  # length in bytes 0-3, type in 4, stream in 5, channel in 6-7
    for field in ("| 0–3 | length |", "| 4 | type |", "| 5 | stream |", "| 6–7 | channel |"):
        assert field in PAGE


def test_the_streams_stages_and_flags_have_their_numbers() -> None:
    streams = ", ".join(f"{each.value} {each.name.lower()}" for each in Stream)
    assert f"| {streams} |" in PAGE
    stages = ", ".join(f"{each.value} `{each.name}`" for each in Stage)
    assert f"stage u32 ({stages})" in payload_of(FrameType.FAILED)
    flags = re.findall(r"^\| (\d+) \| `([A-Z_]+)` \|", PAGE, re.M)
    assert [(int(bit), name) for bit, name in flags] == [(each.value, each.name) for each in RunFlag]


def test_the_table_of_file_operations_has_each_with_its_arguments() -> None:
    rows = dict(re.findall(r"^\| `([a-z]+)`((?: [a-z]+)*) \|", PAGE, re.M))
    table = re.findall(r'\{"([a-z]+)", (\d+), [a-z_]+\}', (AGENT / "file_operation.c").read_text())
    assert {name: len(arguments.split()) for name, arguments in rows.items()} == {n: int(count) for n, count in table}


def test_every_frame_type_is_in_a_conversation() -> None:
    _, _, conversations = PAGE.partition("## The conversation\n")
    assert [each.name for each in FrameType if not re.search(rf"\b{each.name}\b", conversations)] == []


def test_each_limit_on_a_payload_is_in_its_row() -> None:
    assert f"at most {wire.MAX_PAYLOAD:,} (Linux's limit" in PAGE
    assert f"(1 to {wire.MAX_PID:,})" in payload_of(FrameType.STARTED)
    assert f"(1 to {wire.WIDE_STDIN_WINDOW:,})" in payload_of(FrameType.STDIN_CREDIT)
    assert f"(1 to {wire.MAX_PATH_BYTES:,} bytes)" in payload_of(FrameType.ARTIFACT)
    assert f"errno u32 (1 to {wire.MAX_ERRNO:,})" in payload_of(FrameType.FAILED)
    assert f"seed {wire.SEED_BYTES} bytes, host name … (1 to {wire.MAX_HOSTNAME} bytes)" == payload_of(
        FrameType.IDENTITY
    )
    assert f"(up to {wire.MAX_NAME} bytes)" in payload_of(FrameType.RUN)
    assert f"(up to {wire.MAX_LAYER_PATH} bytes)" in payload_of(FrameType.LAYER)


def test_the_limits_on_the_conversation_are_those_of_the_code() -> None:
    assert f"up to {frame_stream.WINDOW:,} bytes of a stream" in TEXT
    assert f"sends at most {wire.STDIN_WINDOW:,} bytes ahead" in TEXT
    assert f"at most {frame_stream.FRAMES_PER_SECOND:,} frames a second" in TEXT
    windows = f"{channel.IDLE_WINDOW:,} bytes of a stream until {channel.MUCH_OUTPUT:,} were read"
    assert f"grants {windows}, then {channel.READER_WINDOW:,}" in TEXT
    assert f"the agent takes {wire.STDIN_WINDOW:,} bytes of input, and up to {wire.WIDE_STDIN_WINDOW:,} of" in TEXT
    assert f"{session.MAX_COMMANDS} commands (with file operations) and {session.MAX_CONNECTIONS} connections" in TEXT
    assert f"places for {session.MAX_CHANNELS:,} channels" in TEXT
    assert f"`PING` every {frame_stream.PING_SECONDS} seconds" in TEXT
    assert f"`silence_seconds` ({connection.SILENCE_SECONDS} by default; 0: no limit)" in TEXT


def test_the_limits_of_the_agent_are_those_of_its_code() -> None:
    sources = {path.name: path.read_text() for path in AGENT.glob("*.[ch]")}

    def constant(file: str, name: str) -> str:
        match = re.search(rf"\b{name} = (\d+)", sources[file])
        assert match is not None, name
        return match[1]

    assert f"more than {constant('agent.h', 'MAX_DEPTH')} folders deep" in TEXT
    assert f"path over {wire.MAX_PATH_BYTES:,} bytes" in TEXT
    assert f"port {constant('vsock.c', 'VSOCK_PORT')} under Firecracker" in TEXT
