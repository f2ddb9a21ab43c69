"""The wire protocol between host and agent, version 4: frames over one byte stream.

A frame is a header of 8 bytes, little-endian: payload length (u32, at most `MAX_PAYLOAD`), kind (u8), stream (u8), and
two zero bytes; then the payload. The agent speaks first (`HELLO`), the host answers (`WELCOME`). Everything that can
grow is paid for with credit that the receiver granted: output and artifacts in bytes by the host, standard input by the
agent. Nothing from the guest is believed: `parse` refuses every frame that is not exactly of its kind's form, and the
session refuses those that come at the wrong time or unpaid. docs/protocol.md describes it for people.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from ipaddress import IPv4Address, IPv4Interface

from belljar.model.errors import GuestProtocolError

VERSION = 4
HEADER = struct.Struct("<IBBH")
#: Linux's limit on one argument or environment string (MAX_ARG_STRLEN), the longest thing that must fit.
MAX_PAYLOAD = 128 * 1024
#: Bytes of standard input that the agent holds before it grants more.
STDIN_WINDOW = 64 * 1024
MAX_PATH_BYTES = 1024
#: Random bytes that seed a machine's kernel: twice what its generator's key has.
SEED_BYTES = 64
#: Linux's limit on a host name (HOST_NAME_MAX is 64 with the zero).
MAX_HOSTNAME = 63
#: Linux's largest error number (MAX_ERRNO).
MAX_ERRNO = 4095
#: Linux's largest process number (PID_MAX_LIMIT).
MAX_PID = 1 << 22
#: Of a prefork program's name.
MAX_NAME = 31
#: Of the folder that a layer is laid over.
MAX_LAYER_PATH = 200


class Stream(IntEnum):
    NONE = 0
    STDOUT = 1
    STDERR = 2
    ARTIFACTS = 3


class Kind(IntEnum):
    """What a frame says; those from 0x80 up come from the agent."""

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


class Stage(IntEnum):
    """Where the agent was when it could not go on: the first number of `FAILED`."""

    #: Mounting the script's disk and making the working folder.
    SCRIPT = 1
    #: Making the namespaces, pipes and cgroup.
    ISOLATE = 2
    #: Executing the command.
    EXEC = 3


class RunFlag(IntFlag):
    """How a command is run."""

    #: In namespaces and a cgroup of its own, with the script's disk mounted. Off in tests of the agent as an ordinary
    #: process.
    ISOLATED = 1
    #: Another command follows in the same working folder.
    KEEP = 2
    #: It is belljar's own and leaves nothing: the script's disk is unmounted afterwards, the working folder forgotten.
    REHEARSE = 4


_WELCOME = struct.Struct("<HHIQ")
_HELLO = struct.Struct("<HHIQ")
_RUN = struct.Struct("<IIII")
_CREDIT = struct.Struct("<I")
#: Address and gateway as they stand in packets, MTU, prefix length, how many name servers, and three of those.
_NETWORK = struct.Struct("<4s4sHBB12s")
#: Bytes of the script's file system and of the layer's, one behind the other on the script's disk.
_LAYER = struct.Struct("<QQ")
_COLLECT = struct.Struct("<QII")
_STARTED = struct.Struct("<I")
_EXITED = struct.Struct("<iiIIQQQ")
_ARTIFACT = struct.Struct("<QI")
_COLLECTED = struct.Struct("<II")
_FAILED = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class Hello:
    version: int
    #: Microseconds since the guest's kernel started.
    uptime_us: int


@dataclass(frozen=True, slots=True)
class Started:
    pid: int


@dataclass(frozen=True, slots=True)
class Output:
    stream: Stream
    data: bytes


@dataclass(frozen=True, slots=True)
class Exited:
    """How the entrypoint ended; exactly one of the first two is not None."""

    exit_code: int | None
    signal: int | None
    #: Processes of the job that the guest's out-of-memory killer ended.
    oom_kills: int
    cpu_us: int
    max_memory_bytes: int
    run_us: int


@dataclass(frozen=True, slots=True)
class StdinCredit:
    size: int


@dataclass(frozen=True, slots=True)
class ArtifactStart:
    size: int
    mode: int
    #: As the guest spelled it; may be no valid UTF-8.
    path: bytes


@dataclass(frozen=True, slots=True)
class ArtifactData:
    data: bytes


@dataclass(frozen=True, slots=True)
class Collected:
    count: int
    #: Files that matched and did not fit the limits, or could not be read.
    skipped: int


@dataclass(frozen=True, slots=True)
class Pong:
    pass


@dataclass(frozen=True, slots=True)
class Failed:
    stage: Stage
    errno: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """Processes wait for their order."""


@dataclass(frozen=True, slots=True)
class Suspended:
    """The machine may be frozen now."""


@dataclass(frozen=True, slots=True)
class Rested:
    """The agent waits for words again."""


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
)


# --- host → agent ----------------------------------------------------------------------------------------------------


def frame(kind: Kind, payload: bytes = b"", stream: Stream = Stream.NONE) -> bytes:
    """One whole frame. Raises ValueError when the payload is too long."""
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"a payload of {len(payload)} bytes is over {MAX_PAYLOAD}")
    return HEADER.pack(len(payload), kind, stream, 0) + payload


def welcome(silence_seconds: int, unix_ns: int) -> bytes:
    """Accept the agent and tell it the time; it powers off when it hears nothing for this long (0: never)."""
    return frame(Kind.WELCOME, _WELCOME.pack(VERSION, silence_seconds, 0, unix_ns))


def identity(seed: bytes, hostname: str) -> bytes:
    """Who this machine is: SEED_BYTES of randomness that no other has, and its name."""
    if len(seed) != SEED_BYTES or not 0 < len(hostname.encode()) <= MAX_HOSTNAME:
        raise ValueError("a machine's identity is a seed of 64 bytes and a name of 1 to 63")
    return frame(Kind.IDENTITY, seed + hostname.encode())


def run(*, uid: int, gid: int, max_processes: int, flags: RunFlag, cwd: bytes, prefork: str = "") -> bytes:
    """Run the arguments and environment sent so far, in `cwd`: in the prefork program of that name if one waits."""
    return frame(Kind.RUN, _request(uid, gid, max_processes, flags, cwd, prefork))


def prepare(*, uid: int, gid: int, max_processes: int, flags: RunFlag, prefork: str = "") -> bytes:
    """Make processes that wait: the prefork program of that name, started with the strings sent so far, or none."""
    return frame(Kind.PREPARE, _request(uid, gid, max_processes, flags, b"/", prefork))


def _request(uid: int, gid: int, max_processes: int, flags: RunFlag, cwd: bytes, prefork: str) -> bytes:
    if len(prefork.encode()) > MAX_NAME:
        raise ValueError(f"the name of a prefork program has at most {MAX_NAME} bytes")
    return _RUN.pack(uid, gid, max_processes, flags) + cwd + b"\0" + prefork.encode()


def network(interface: IPv4Interface, gateway: IPv4Address, nameservers: Sequence[IPv4Address], mtu: int) -> bytes:
    """Set the machine's network device up, before RUN. At most three name servers."""
    addresses = b"".join(each.packed for each in nameservers[:3])
    prefix = interface.network.prefixlen
    count = len(addresses) // 4
    payload = _NETWORK.pack(interface.ip.packed, gateway.packed, mtu, prefix, count, addresses)
    return frame(Kind.NETWORK, payload)


def layer(script_bytes: int, layer_bytes: int, path: str) -> bytes:
    """Before RUN: behind the script its disk holds a layer, which is to be laid over that folder of the image."""
    name = path.encode()
    if not (script_bytes > 0 and layer_bytes > 0 and name.startswith(b"/") and len(name) <= MAX_LAYER_PATH):
        raise ValueError(f"a layer has a length, and an absolute path of at most {MAX_LAYER_PATH} bytes")
    return frame(Kind.LAYER, _LAYER.pack(script_bytes, layer_bytes) + name)


def credit(stream: Stream, size: int) -> bytes:
    return frame(Kind.CREDIT, _CREDIT.pack(size), stream)


def collect(globs: list[bytes], *, max_bytes: int, max_count: int) -> bytes:
    return frame(Kind.COLLECT, _COLLECT.pack(max_bytes, max_count, 0) + b"\0".join(globs))


# --- agent → host ----------------------------------------------------------------------------------------------------


def parse_header(data: bytes) -> tuple[int, Kind, Stream]:
    """Length, kind and stream of the frame that follows. Raises GuestProtocolError for anything that is not one."""
    length, kind, stream, zero = HEADER.unpack(data)
    if length > MAX_PAYLOAD:
        raise GuestProtocolError(f"the guest announced a frame of {length} bytes; at most {MAX_PAYLOAD} are allowed")
    if zero != 0 or kind < Kind.HELLO:
        raise GuestProtocolError("the guest sent a malformed frame header")
    try:
        return length, Kind(kind), Stream(stream)
    except ValueError:
        raise GuestProtocolError("the guest sent a frame of no known kind") from None


def parse(kind: Kind, stream: Stream, payload: bytes) -> Message:
    """The message in a frame from the agent. Raises GuestProtocolError when it is not exactly of its kind's form."""
    if kind is Kind.OUTPUT:
        if stream not in (Stream.STDOUT, Stream.STDERR) or not payload:
            raise GuestProtocolError("the guest sent output that is empty or of no stream")
        return Output(stream, payload)
    if stream is not Stream.NONE:
        raise GuestProtocolError(f"the guest sent {kind.name} with a stream")
    try:
        return _PARSERS[kind](payload)
    except (struct.error, ValueError):
        raise GuestProtocolError(f"the guest sent a malformed {kind.name}") from None


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
    if not 0 < size <= STDIN_WINDOW:
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
    """The parser of a frame that has no payload."""

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


_PARSERS: dict[Kind, Callable[[bytes], Message]] = {
    Kind.HELLO: _hello,
    Kind.STARTED: _started,
    Kind.EXITED: _exited,
    Kind.STDIN_CREDIT: _stdin_credit,
    Kind.ARTIFACT: _artifact,
    Kind.ARTIFACT_DATA: _artifact_data,
    Kind.COLLECTED: lambda payload: Collected(*_COLLECTED.unpack(payload)),
    Kind.PONG: _empty(Pong),
    Kind.FAILED: _failed,
    Kind.PREPARED: _empty(Prepared),
    Kind.SUSPENDED: _empty(Suspended),
    Kind.RESTED: _empty(Rested),
}
