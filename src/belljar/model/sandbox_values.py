"""What crosses the link about a running sandbox: commands, their output and ends, files, ports, usage.

Everything that a guest sent is data of a hostile machine: shown to callers, never used as a path or command on a host.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from belljar.model.log_stream import LogStream
from belljar.model.value import Value

Cells = Annotated[int, Field(ge=1, le=0xFFFF)]


class TerminalSize(Value):
    """The size of a terminal in characters."""

    columns: Cells = 80
    rows: Cells = 24


class GuestUser(Value):
    """Who does something in a sandbox; None means its own user. Only a sandbox of root takes another."""

    uid: int = Field(ge=0, le=0x7FFFFFFF)
    gid: int = Field(ge=0, le=0x7FFFFFFF)


ROOT = GuestUser(uid=0, gid=0)


class CodeContext(Value):
    """The context whose kernel a command is: a program that runs code and keeps its variables."""

    id: str
    language: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessRequest:
    """A command to start in a sandbox."""

    #: The program and its arguments; a program without a slash is searched in PATH.
    args: tuple[str, ...]
    #: Variables besides those of the image and of the sandbox.
    env: dict[str, str] = field(default_factory=dict)
    #: None: the image's working folder, or /work.
    cwd: str | None = None
    user: GuestUser | None = None
    #: Runs with this terminal; its output is all stdout then. None: with three pipes.
    terminal: TerminalSize | None = None
    #: The whole of its input, sent at once and followed by its end; None: input comes later (`write_input`).
    stdin: bytes | None = None
    #: A background command is never held up by output that nobody reads: only the newest is kept. A foreground command
    #: waits for its reader, and counts as use of the sandbox while it runs.
    background: bool = False
    #: A kernel: a background command that waits for its reader nevertheless, because all of its output is necessary.
    context: CodeContext | None = None
    #: It is killed, with all that it started, when it has run so long; time that its machine is frozen does not count.
    timeout_seconds: float | None = None


class ProcessExit(Value):
    """How a command ended; exactly one of `exit_code` and `signal` is not None."""

    exit_code: int | None
    signal: str | None = None
    """Name of the signal that ended it, such as SIGKILL."""
    out_of_memory: bool = False
    """Whether the guest's kernel killed processes of it for want of memory."""
    timed_out: bool = False
    """Whether its node killed it at its timeout."""
    duration_ms: float
    cpu_seconds: float
    max_memory_mb: float


class ProcessInfo(Value):
    """A command of a sandbox, running or ended."""

    id: int
    """Its number in the sandbox: in every call, also after a pause or in a fork. Not reused soon."""
    pid: int
    """Its process number in the machine."""
    args: tuple[str, ...]
    cwd: str
    terminal: bool
    background: bool
    context: CodeContext | None = None
    """The context whose kernel it is; None for other commands."""
    started_at: datetime
    exit: ProcessExit | None = None
    """None while it runs."""
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    """Bytes of output so far, whether kept or not."""


@dataclass(frozen=True, slots=True)
class ProcessOutput:
    """Bytes of one stream of a command. `offset` counts the bytes of that stream before them: a gap is what was not
    kept."""

    stream: LogStream
    offset: int
    data: bytes


class FileKind(StrEnum):
    """The type of a file."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "link"
    FIFO = "fifo"
    SOCKET = "socket"
    DEVICE = "device"


class FileEntry(Value):
    """A file, folder or link in a sandbox."""

    path: str
    """As it was asked for, or relative to the listed folder; bytes that are no UTF-8 are surrogates U+DC80…"""
    kind: FileKind
    size_bytes: int
    mode: int
    uid: int
    gid: int
    modified_ns: int
    """Nanoseconds since 1970."""
    target: str | None = None
    """Where a link leads."""
    readable: bool = True
    """False for a folder whose entries cannot be listed."""


class FileChange(StrEnum):
    """What happened to a path below a watched folder."""

    CREATED = "created"
    WRITTEN = "written"
    REMOVED = "removed"
    MOVED_FROM = "moved_from"
    MOVED_TO = "moved_to"
    ATTRIBUTES = "attributes"
    #: Changes were lost, or there are too many folders; look at everything again.
    OVERFLOW = "overflow"


class FileEvent(Value):
    """A change below a watched folder; the path is relative to it."""

    change: FileChange
    path: str


@dataclass(frozen=True, kw_only=True, slots=True)
class WriteOptions:
    """How a file is written."""

    #: Mode of a new file.
    mode: int = 0o644
    #: Whether readers see the old file or the whole new one; a write that breaks off leaves the old one.
    atomic: bool = True
    append: bool = False
    #: Whether it must not exist.
    exclusive: bool = False
    #: Whether missing folders are made.
    parents: bool = True
    #: Write there and keep the rest; not with `atomic` or `append`.
    offset: int | None = None


class ListeningPort(Value):
    """A TCP port that a program in the sandbox listens on."""

    port: int
    address: str
    uid: int


class SandboxUsage(Value):
    """What a sandbox's machine uses, as its guest counts it."""

    uptime_seconds: float
    cpu_seconds: float
    memory_bytes: int
    memory_limit_bytes: int
    cache_bytes: int
    """Memory of the page cache, part of `memory_bytes`."""
    disk_bytes: int
    disk_limit_bytes: int
    received_bytes: int
    sent_bytes: int
    processes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SandboxActivity:
    """How a sandbox is used: what its idle limit goes by."""

    #: Calls that are under way, and foreground commands that run.
    in_use: int
    #: Seconds since the last use ended; 0 while it is in use.
    idle_seconds: float
