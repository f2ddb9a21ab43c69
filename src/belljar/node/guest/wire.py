"""The wire protocol between host and agent, version 5: its numbers, and the parser of the agent's frames.

A frame is a header of 8 bytes, little-endian: payload length (u32, at most `MAX_PAYLOAD`), type (u8), stream (u8), and
channel (u16, 0: the conversation itself); then the payload. Every byte from the guest is hostile: `parse` rejects each
frame that does not have exactly its type's form. channel_messages.py has the messages of a session, requests.py encodes
the host's frames, frame_stream.py sends and receives, docs/protocol.md describes the protocol.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from belljar.model.errors import GuestProtocolError
from belljar.node.guest import channel_messages
from belljar.node.guest.channel_messages import ChannelState, Closed, Connected, Serving, StreamEnd, Usage

VERSION = 5
HEADER = struct.Struct("<IBBH")
#: Bytes of a frame's payload: Linux's limit on one argument or environment string (MAX_ARG_STRLEN).
MAX_PAYLOAD = 128 * 1024
#: Bytes of standard input that the agent buffers before it grants more.
STDIN_WINDOW = 64 * 1024
#: The same of a channel with much input, if the agent has a place for it.
WIDE_STDIN_WINDOW = 256 * 1024
#: Bytes of a path that the agent sends or receives.
MAX_PATH_BYTES = 1024
#: Random bytes that seed a machine's kernel: twice the size of its generator's key.
SEED_BYTES = 64
#: Bytes of a host name (Linux's HOST_NAME_MAX is 64 with the terminating zero).
MAX_HOSTNAME = 63
#: Linux's largest error number (MAX_ERRNO).
MAX_ERRNO = 4095
#: Linux's largest process number (PID_MAX_LIMIT).
MAX_PID = 1 << 22
#: Bytes of a prefork program's name.
MAX_NAME = 31
#: Bytes of the path of the folder that a layer is mounted over.
MAX_LAYER_PATH = 200
#: Bytes of the name of a secret that is a file.
MAX_SECRET_NAME = 64


class FrameType(IntEnum):
    """Type of a frame; the agent sends those from 0x80 up, the host all others."""

    WELCOME = 0x01
    ARG = 0x02
    ENV = 0x03
    RUN = 0x04
    STDIN = 0x05
    CREDIT = 0x06
    SIGNAL = 0x07
    COLLECT = 0x08
    PING = 0x09
    DISCARD = 0x0B
    NETWORK = 0x0C
    IDENTITY = 0x0D
    PREPARE = 0x0E
    SUSPEND = 0x0F
    REST = 0x10
    LAYER = 0x11
    SECRET = 0x12
    SESSION = 0x13
    EXEC = 0x14
    CONNECT = 0x15
    RESIZE = 0x16
    CLOSE = 0x17
    CHANNELS = 0x18
    METER = 0x19

    HELLO = 0x81
    STARTED = 0x82
    OUTPUT = 0x83
    EXITED = 0x84
    STDIN_CREDIT = 0x85
    ARTIFACT = 0x86
    ARTIFACT_DATA = 0x87
    COLLECTED = 0x88
    PONG = 0x89
    FAILED = 0x8A
    PREPARED = 0x8B
    SUSPENDED = 0x8C
    RESTED = 0x8D
    SERVING = 0x8E
    CONNECTED = 0x8F
    END = 0x90
    CLOSED = 0x91
    CHANNEL = 0x92
    USAGE = 0x93


class Stage(IntEnum):
    """The step at which the agent failed to start a command: the first number of `FAILED`."""

    #: Mount the script's disk and create the working folder.
    SCRIPT = 1
    #: Create the namespaces, pipes and cgroup.
    ISOLATE = 2
    #: Execute the command.
    EXEC = 3


class RunFlag(IntFlag):
    """How the agent runs a command."""

    #: Use new namespaces and a new cgroup, and mount the script's disk. Off only in tests that run the agent as an
    #: ordinary process.
    ISOLATED = 1
    #: Another command follows in the same working folder.
    KEEP = 2
    #: A warm-up command of belljar's own: the script's disk is unmounted afterwards, the working folder discarded.
    WARM_UP = 4
    #: A session has a script's disk to mount; without it the working folder is empty.
    SCRIPT = 8


class ExecFlag(IntFlag):
    """How the agent runs a command of a session."""

    #: Its standard streams are a terminal.
    TERMINAL = 1
    #: It is one of the agent's file operations, not a program.
    FILES = 2


class Stream(IntEnum):
    """What a frame's bytes or credit belong to."""

    NONE = 0
    STDOUT = 1
    STDERR = 2
    ARTIFACTS = 3


_HELLO = struct.Struct("<HHIQ")
_CREDIT = struct.Struct("<I")
_STARTED = struct.Struct("<I")
_EXITED = struct.Struct("<iiIIQQQ")
_ARTIFACT = struct.Struct("<QI")
_COLLECTED = struct.Struct("<II")
_FAILED = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class Hello:
    """The agent is ready; the first frame of a connection."""

    version: int
    #: Microseconds since the guest's kernel started.
    uptime_us: int


@dataclass(frozen=True, slots=True)
class Started:
    """The command runs, as this process of the guest."""

    pid: int


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes that the command wrote to a standard stream."""

    stream: Stream
    data: bytes


@dataclass(frozen=True, slots=True)
class Exited:
    """How the command ended; exactly one of `exit_code` and `signal` is not None."""

    exit_code: int | None
    signal: int | None
    #: Processes of the job that the guest's out-of-memory killer killed.
    oom_kills: int
    cpu_us: int
    max_memory_bytes: int
    run_us: int


@dataclass(frozen=True, slots=True)
class StdinCredit:
    """So many more bytes of standard input may be sent."""

    size: int


@dataclass(frozen=True, slots=True)
class ArtifactStart:
    """An artifact of `size` bytes follows."""

    size: int
    mode: int
    #: As the guest sent it; may be invalid UTF-8.
    path: bytes


@dataclass(frozen=True, slots=True)
class ArtifactData:
    """The next bytes of the current artifact."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Collected:
    """All artifacts were sent."""

    count: int
    #: Files and folders that matched but exceeded a limit or were unreadable.
    skipped: int


@dataclass(frozen=True, slots=True)
class Pong:
    """The reply to PING."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The command or prefork program could not be started."""

    stage: Stage
    errno: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """A set of processes waits for a command."""


@dataclass(frozen=True, slots=True)
class Suspended:
    """The machine may be frozen now."""


@dataclass(frozen=True, slots=True)
class Rested:
    """The agent accepts another command."""


Message = (
    Hello
    | Started
    | Output
    | Exited
    | StdinCredit
    | ArtifactStart
    | ArtifactData
    | Collected
    | Pong
    | Failed
    | Prepared
    | Suspended
    | Rested
    | Serving
    | Connected
    | StreamEnd
    | Closed
    | ChannelState
    | Usage
)


def frame(frame_type: FrameType, payload: bytes = b"", stream: Stream = Stream.NONE, channel: int = 0) -> bytes:
    """Encode one whole frame. Raises ValueError when the payload is over MAX_PAYLOAD bytes."""
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"a payload of {len(payload)} bytes is over {MAX_PAYLOAD}")
    return HEADER.pack(len(payload), frame_type, stream, channel) + payload


def parse_header(data: bytes) -> tuple[int, FrameType, Stream, int]:
    """Return payload length in bytes, type, stream and channel of an agent's frame. Raises GuestProtocolError."""
    length, number, stream, channel = HEADER.unpack(data)
    if length > MAX_PAYLOAD:
        raise GuestProtocolError(f"frame of {length} bytes from guest agent exceeds the limit of {MAX_PAYLOAD}")
    if number < FrameType.HELLO:
        raise GuestProtocolError("invalid frame header from guest agent")
    try:
        return length, FrameType(number), Stream(stream), channel
    except ValueError:
        raise GuestProtocolError(f"unknown frame type {number:#04x} or stream {stream} from guest agent") from None


def parse(frame_type: FrameType, stream: Stream, payload: bytes) -> Message:
    """Return the message in an agent's frame. Raises GuestProtocolError when it lacks exactly its type's form."""
    if frame_type is FrameType.OUTPUT:
        if stream not in (Stream.STDOUT, Stream.STDERR) or not payload:
            raise GuestProtocolError("invalid OUTPUT frame (empty, or unknown stream)")
        return Output(stream, payload)
    if frame_type is FrameType.END and stream is Stream.STDOUT:
        stream = Stream.NONE  # the only stream that a connection has
    if stream is not Stream.NONE:
        raise GuestProtocolError(f"invalid {frame_type.name} frame (stream {stream.name} set)")
    try:
        return _PARSERS[frame_type](payload)
    except (struct.error, ValueError):
        raise GuestProtocolError(f"invalid {frame_type.name} frame (malformed payload)") from None


def _hello(payload: bytes) -> Hello:
    version, flags, zero, uptime_us = _HELLO.unpack(payload)
    if flags or zero:
        raise ValueError
    return Hello(version, uptime_us)


def _started(payload: bytes) -> Started:
    (pid,) = _STARTED.unpack(payload)
    if not 0 < pid <= MAX_PID:
        raise ValueError
    return Started(pid)


def _stdin_credit(payload: bytes) -> StdinCredit:
    (size,) = _CREDIT.unpack(payload)
    if not 0 < size <= WIDE_STDIN_WINDOW:
        raise ValueError
    return StdinCredit(size)


def _exited(payload: bytes) -> Exited:
    exit_code, signal, oom_kills, zero, cpu_us, max_memory_bytes, run_us = _EXITED.unpack(payload)
    if zero or not (0 <= signal <= 64) or not (0 <= exit_code <= 255) or (signal and exit_code):
        raise ValueError
    code = None if signal else exit_code
    return Exited(code, signal or None, oom_kills, cpu_us, max_memory_bytes, run_us)


def _artifact(payload: bytes) -> ArtifactStart:
    size, mode = _ARTIFACT.unpack_from(payload)
    path = payload[_ARTIFACT.size :]
    if not 0 < len(path) <= MAX_PATH_BYTES or b"\0" in path or size >= 1 << 63:
        raise ValueError
    return ArtifactStart(size, mode & 0o777, path)


def _artifact_data(payload: bytes) -> ArtifactData:
    if not payload:
        raise ValueError
    return ArtifactData(payload)


def _empty(message: Callable[[], Message]) -> Callable[[bytes], Message]:
    """Return the parser of a frame without payload."""

    def parser(payload: bytes) -> Message:
        if payload:
            raise ValueError
        return message()

    return parser


def _failed(payload: bytes) -> Failed:
    stage, errno = _FAILED.unpack(payload)
    if not 0 < errno <= MAX_ERRNO:
        raise ValueError
    return Failed(Stage(stage), errno)


_PARSERS: dict[FrameType, Callable[[bytes], Message]] = {
    FrameType.HELLO: _hello,
    FrameType.STARTED: _started,
    FrameType.EXITED: _exited,
    FrameType.STDIN_CREDIT: _stdin_credit,
    FrameType.ARTIFACT: _artifact,
    FrameType.ARTIFACT_DATA: _artifact_data,
    FrameType.COLLECTED: lambda payload: Collected(*_COLLECTED.unpack(payload)),
    FrameType.PONG: _empty(Pong),
    FrameType.FAILED: _failed,
    FrameType.PREPARED: _empty(Prepared),
    FrameType.SUSPENDED: _empty(Suspended),
    FrameType.RESTED: _empty(Rested),
    FrameType.SERVING: _empty(Serving),
    FrameType.CONNECTED: _empty(Connected),
    FrameType.END: _empty(StreamEnd),
    FrameType.CLOSED: channel_messages.closed,
    FrameType.CHANNEL: channel_messages.channel_state,
    FrameType.USAGE: channel_messages.usage,
}
