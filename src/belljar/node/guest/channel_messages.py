"""The agent's messages about a session and its channels, and the parsers of their payloads.

A parser raises ValueError or struct.error for a payload without exactly its form; wire.py turns both into a protocol
error.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntFlag

#: The most bytes of input of one channel that the agent takes before it grants more (wire.WIDE_STDIN_WINDOW).
_INPUT_WINDOW = 256 * 1024
_MAX_ERRNO = 4095
_MAX_PID = 1 << 22
_CLOSED = struct.Struct("<I")
_CHANNEL = struct.Struct("<IIII")
_USAGE = struct.Struct("<QQQQQQQQQII")


@dataclass(frozen=True, slots=True)
class Serving:
    """The session has started; after CHANNELS: every channel was told."""


@dataclass(frozen=True, slots=True)
class Connected:
    """The connection to a port is made."""


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """The other end of a connection sends no more."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The last frame of a channel: 0, or the guest's errno that ended it."""

    errno: int


class ChannelFlag(IntFlag):
    """The state of a command that a new host gets to know."""

    EXITED = 1
    TERMINAL = 2
    INPUT_ENDED = 4


@dataclass(frozen=True, slots=True)
class ChannelState:
    """A command of a machine that was resumed."""

    #: 0: it is being started.
    pid: int
    flags: ChannelFlag
    #: Bytes of input that it takes now.
    input_credit: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What a machine uses, in a session or while a job's command runs; a number that the guest cannot tell is 0."""

    #: Microseconds since the guest's kernel started.
    time_us: int
    #: Of all commands of the session, or of the job's command.
    cpu_us: int
    memory_bytes: int
    memory_limit_bytes: int
    #: Memory of the page cache, which is part of `memory_bytes`.
    cache_bytes: int
    disk_bytes: int
    disk_limit_bytes: int
    received_bytes: int
    sent_bytes: int
    processes: int


def closed(payload: bytes) -> Closed:
    """Parse CLOSED."""
    (errno,) = _CLOSED.unpack(payload)
    if errno > _MAX_ERRNO:
        raise ValueError
    return Closed(errno)


def channel_state(payload: bytes) -> ChannelState:
    """Parse CHANNEL."""
    pid, flags, input_credit, zero = _CHANNEL.unpack(payload)
    if pid > _MAX_PID or flags >= 8 or input_credit > _INPUT_WINDOW or zero:
        raise ValueError
    return ChannelState(pid, ChannelFlag(flags), input_credit)


def usage(payload: bytes) -> Usage:
    """Parse USAGE."""
    *numbers, zero = _USAGE.unpack(payload)
    if zero or any(number >= 1 << 63 for number in numbers):
        raise ValueError
    return Usage(*numbers)
