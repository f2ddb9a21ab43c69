"""The parser of the guest's frames, and the numbers that both ends must agree on."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from belljar.model.errors import GuestProtocolError
from belljar.node.guest import file_records, session, wire
from belljar.node.guest.channel_messages import ChannelFlag, ChannelState, StreamEnd
from belljar.node.guest.wire import FrameType, Stream
from support.conversation import AGENT


def c_enums() -> dict[str, int]:
    text = re.sub(
        r"/\*.*?\*/",
        "",
        "".join((AGENT / name).read_text() for name in ("wire.h", "agent.h", "file_operation.h")),
        flags=re.S,
    )
    pairs = re.findall(r"\b([A-Z_]+) = (0x[0-9A-Fa-f]+|\d+(?: \* \d+)?)[,;\s]", text)
    return {name: eval(value) for name, value in pairs}


def test_agent_and_host_agree_on_every_number() -> None:
    numbers = c_enums()
    for frame_type in FrameType:
        assert numbers[frame_type.name] == frame_type
    for stream in Stream:
        assert numbers[stream.name] == stream
    for stage in wire.Stage:
        assert numbers[f"STAGE_{stage.name}"] == stage
    for flag in wire.RunFlag:
        assert numbers[f"RUN_{flag.name}"] == flag
    for exec_flag in wire.ExecFlag:
        assert numbers[f"EXEC_{exec_flag.name}"] == exec_flag
    for channel_flag in ChannelFlag:
        assert numbers[f"CHANNEL_{channel_flag.name}"] == channel_flag
    for kind in file_records.RecordKind:
        assert numbers[f"RECORD_{kind.name}"] == kind
    assert numbers["EVENT_READY"] == file_records.EventKind.READY  # the others follow it in order
    assert [each.value for each in file_records.EventKind] == list(range(1, 9))
    assert numbers["RECORD_SIZE"] == file_records.HEADER.size
    assert numbers["MAX_FILE_PATH"] == file_records.MAX_FILE_PATH
    for name in ("MAX_COMMANDS", "MAX_CONNECTIONS", "MAX_CHANNELS"):
        assert numbers[name] == getattr(session, name)
    for name in (
        "VERSION",
        "MAX_PAYLOAD",
        "STDIN_WINDOW",
        "WIDE_STDIN_WINDOW",
        "MAX_PATH_BYTES",
        "SEED_BYTES",
        "MAX_HOSTNAME",
        "MAX_NAME",
        "MAX_LAYER_PATH",
    ):
        assert numbers[name] == getattr(wire, name)


@given(st.binary(min_size=8, max_size=8))
def test_a_header_is_parsed_or_rejected(data: bytes) -> None:
    try:
        length, frame_type, stream, channel = wire.parse_header(data)
    except GuestProtocolError:
        return
    assert length <= wire.MAX_PAYLOAD
    assert wire.HEADER.pack(length, frame_type, stream, channel) == data


@given(
    st.sampled_from([each for each in FrameType if each >= FrameType.HELLO]),
    st.sampled_from(Stream),
    st.binary(max_size=200),
)
def test_a_payload_is_parsed_or_rejected(frame_type: FrameType, stream: Stream, payload: bytes) -> None:
    try:
        message = wire.parse(frame_type, stream, payload)
    except GuestProtocolError:
        return
    match message:
        case wire.Output(parsed, data):
            assert parsed in (Stream.STDOUT, Stream.STDERR) and data == payload
        case wire.Exited(code, signal):
            assert (code is None) != (signal is None)
        case wire.ArtifactStart(size, mode, path):
            assert size >= 0 and mode <= 0o777 and b"\0" not in path and 0 < len(path) <= wire.MAX_PATH_BYTES
        case StreamEnd():
            assert stream in (Stream.NONE, Stream.STDOUT)
        case ChannelState(pid, flags, credit):
            assert pid <= wire.MAX_PID and flags < 8 and credit <= wire.WIDE_STDIN_WINDOW
        case _:
            assert stream is Stream.NONE


@given(st.sampled_from([each for each in FrameType if each < FrameType.HELLO]), st.sampled_from(Stream))
def test_a_frame_that_only_the_host_may_send_is_rejected(frame_type: FrameType, stream: Stream) -> None:
    with pytest.raises(GuestProtocolError):
        wire.parse_header(wire.HEADER.pack(0, frame_type, stream, 0))


def test_a_frame_too_long_to_be_allowed_is_never_built() -> None:
    with pytest.raises(ValueError, match="over"):
        wire.frame(FrameType.STDIN, bytes(wire.MAX_PAYLOAD + 1))
