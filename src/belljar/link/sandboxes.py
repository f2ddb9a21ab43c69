"""The interface between a node and the control plane for sandboxes.

`SandboxLink` is what the control plane does for a node; `SandboxMachine` is what a node offers of a sandbox whose
machine it has. Values and streams of bytes cross both, so that each can be carried over HTTPS; in one process a
`SandboxMachine` is an object that the node passes with `running`. The leases of sandboxes are like those of jobs: every
call carries one, the control plane writes nothing for a lease that is not held (LeaseLost), and the node ends the
machine of a lost lease. A second call after a failure whose effect is not known has no further effect, or raises
LeaseLost.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from belljar.link.leases import ClaimRequest, NodeIdentity
from belljar.link.secrets import JobSecret
from belljar.model.flows import FlowReport
from belljar.model.job import MachineInfo, Timings
from belljar.model.sandbox import EndReason, FrozenState, ResumeProblem, Sandbox, SandboxEnd
from belljar.model.sandbox_values import (
    FileEntry,
    FileEvent,
    GuestUser,
    ListeningPort,
    ProcessExit,
    ProcessInfo,
    ProcessOutput,
    ProcessRequest,
    SandboxActivity,
    SandboxUsage,
    TerminalSize,
    WriteOptions,
)
from belljar.model.usage_series import UsageSeries

# --- the control plane, for a node ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SandboxLease:
    """The right of one process of a node to one sandbox. The fence counts the sandbox's claims."""

    sandbox_id: str
    fence: int
    node: NodeIdentity

    def __str__(self) -> str:
        return f"{self.sandbox_id}.{self.fence}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SandboxOrder:
    """What the control plane wants of a sandbox now."""

    #: Why the node is to end it; None: it goes on.
    end: EndReason | None = None
    #: When its lifetime is over, by the database's clock: it changes only when the lifetime is extended.
    expires_at: datetime
    #: Seconds from now until then. The node counts them by its own clock, from the first order with that `expires_at`.
    lifetime_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SandboxAssignment:
    """A sandbox that a node was given, and for how long unless it renews the lease."""

    lease: SandboxLease
    sandbox: Sandbox
    order: SandboxOrder
    lease_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SandboxRenewal:
    """The answer to a renewal: a lease is either lost, or renewed and has an order."""

    lost: frozenset[SandboxLease] = frozenset()
    orders: dict[SandboxLease, SandboxOrder] = field(default_factory=dict)
    #: How long the renewed ones last from the moment of the request.
    lease_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SandboxStart:
    """The machine of a sandbox takes commands."""

    started_at: datetime
    machine: MachineInfo
    timings: Timings


@dataclass(frozen=True, kw_only=True, slots=True)
class FreezeRequest:
    """What is wanted of a running sandbox: a frozen copy of its machine."""

    #: The id of the copy, new.
    id: str
    #: Whether the machine ends with it, so that the sandbox is paused. Else the machine goes on.
    pause: bool


class SandboxLink(Protocol):
    """What the control plane does for a node's sandboxes. Every implementation passes the tests in tests/link."""

    async def forget_sandboxes(self, node: NodeIdentity) -> int:
        """Begin to hold sandboxes as this process: end those that earlier processes of the node left, as `node_lost`.

        One that was being resumed is paused again. Returns how many there were. To be called before the first claim.
        """
        ...

    async def claim_sandbox(
        self, node: NodeIdentity, request: ClaimRequest, wait_seconds: float
    ) -> SandboxAssignment | None:
        """Give the node the oldest sandbox without a machine that it has room for. None when none came in that time.

        Cancelling the call loses no sandbox.
        """
        ...

    async def decline_sandbox(self, lease: SandboxLease) -> None:
        """Give back a sandbox for which nothing was done: another node may claim it."""
        ...

    async def renew_sandboxes(self, node: NodeIdentity, leases: Collection[SandboxLease]) -> SandboxRenewal:
        """Hold these leases for longer; the answer says which are lost, and what is wanted of the others."""
        ...

    async def wait_for_orders(self, node: NodeIdentity, wait_seconds: float) -> dict[SandboxLease, SandboxOrder]:
        """Wait until an order may have changed, at most so long; return the orders of the node's sandboxes."""
        ...

    async def sandbox_secrets(self, lease: SandboxLease) -> tuple[JobSecret, ...]:
        """Return the secrets that the sandbox names, each once, and note their versions in it.

        Raises SecretMissing when one was removed, InvalidOption, SecretsKeyError.
        """
        ...

    async def sandbox_running(self, lease: SandboxLease, start: SandboxStart, machine: SandboxMachine) -> None:
        """Keep that its machine takes commands; callers reach it through `machine` from now on."""
        ...

    async def sandbox_pausing(self, lease: SandboxLease) -> None:
        """Keep that its machine is about to be frozen and ended. `sandbox_running` tells that it runs on."""
        ...

    async def sandbox_paused(self, lease: SandboxLease, frozen: FrozenState) -> None:
        """Pause the sandbox: it is kept in this frozen machine, and the lease is given up.

        A later process of the node may say so for a lease of an earlier one that is still held. Calling it again for a
        sandbox that this lease paused does nothing.
        """
        ...

    async def sandbox_not_resumed(self, lease: SandboxLease, problem: ResumeProblem) -> None:
        """Pause the sandbox again, which could not be resumed, and give up the lease."""
        ...

    async def frozen_in_use(self, node: NodeIdentity, ids: Collection[str]) -> frozenset[str]:
        """Return those of the frozen machines that a sandbox or a snapshot needs; the node may remove the others."""
        ...

    async def report_sandbox_flows(self, lease: SandboxLease, report: FlowReport) -> None:
        """Keep the report as what its machine talked to so far; it replaces the one before. Raises TooLarge."""
        ...

    async def put_sandbox_usage(self, lease: SandboxLease, series: UsageSeries) -> None:
        """Keep what its machine has used so far, instead of what was kept before."""
        ...

    async def sandbox_ended(self, lease: SandboxLease, end: SandboxEnd) -> None:
        """End the sandbox, whose machine is gone. Calling it again for a sandbox that this lease ended does nothing."""
        ...


# --- a sandbox's machine, for the control plane -----------------------------------------------------------------------


class FileContent(Protocol):
    """A file that is being read."""

    @property
    def entry(self) -> FileEntry:
        """The file when it was opened; it may change while it is read."""
        ...

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield its bytes to the end. Raises FileError, StreamBroken."""
        ...


class ByteStream(Protocol):
    """A connection to a port in the sandbox: bytes both ways, each direction with an end of its own."""

    async def write(self, data: bytes) -> None:
        """Send, waiting while the other end does not take it. Raises PortRefused, StreamBroken."""
        ...

    async def close_write(self) -> None:
        """End this direction. Raises StreamBroken."""
        ...

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield what the other end sends, to its end. Raises PortRefused when it is lost, StreamBroken."""
        ...


class SandboxFiles(Protocol):
    """The files of a sandbox. Paths are absolute in it; `user` None: the image's user. No link leads out of its root.

    Every verb raises FileError (one of its kinds by errno) and the errors of SandboxMachine.
    """

    async def stat(self, path: str, *, follow: bool = True, user: GuestUser | None = None) -> FileEntry:
        """Describe a path; with `follow`, what a link leads to."""
        ...

    def list(self, path: str, *, depth: int = 1, user: GuestUser | None = None) -> AsyncIterator[FileEntry]:
        """Yield what is in a folder, to a depth of at most 128, in no order; links are not followed."""
        ...

    def read(
        self, path: str, *, offset: int = 0, length: int | None = None, user: GuestUser | None = None
    ) -> AbstractAsyncContextManager[FileContent]:
        """Open a regular file to read `length` bytes (None: all) from `offset` on."""
        ...

    async def write(
        self,
        path: str,
        pieces: AsyncIterator[bytes],
        options: WriteOptions = WriteOptions(),  # noqa: B008 (frozen)
        *,
        user: GuestUser | None = None,
    ) -> FileEntry:
        """Write a file and return what it is afterwards; whatever `pieces` raises breaks the write off."""
        ...

    async def move(self, path: str, destination: str, *, replace: bool = True, user: GuestUser | None = None) -> None:
        """Rename within a file system."""
        ...

    async def remove(self, path: str, *, recursive: bool = False, user: GuestUser | None = None) -> None:
        """Remove a file, a link or an empty folder, with `recursive` a folder and what is in it."""
        ...

    async def mkdir(
        self, path: str, *, mode: int = 0o755, parents: bool = False, user: GuestUser | None = None
    ) -> None:
        """Make a folder."""
        ...

    async def chmod(self, path: str, mode: int, *, user: GuestUser | None = None) -> None:
        """Change the mode of what a path leads to."""
        ...

    def watch(
        self, path: str, *, recursive: bool = False, user: GuestUser | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[FileEvent]]:
        """Watch a folder; the block begins once it is watched. Raises TooManyFolders."""
        ...

    def archive(self, path: str, *, user: GuestUser | None = None) -> AsyncIterator[bytes]:
        """Yield a tar archive of a folder's content; it is complete only if nothing is raised."""
        ...

    async def extract(self, path: str, pieces: AsyncIterator[bytes], *, user: GuestUser | None = None) -> None:
        """Extract a tar archive into a folder that exists. Raises InvalidArchive."""
        ...


class SandboxMachine(Protocol):
    """A running sandbox, where its machine is.

    Every verb raises SandboxEnded, SandboxPaused or StreamBroken when the machine ends, or is paused, before or during
    the call; SandboxUnreachable when its node cannot be reached.
    """

    @property
    def files(self) -> SandboxFiles:
        """Its files."""
        ...

    async def start(self, request: ProcessRequest) -> ProcessInfo:
        """Start a command. Raises CannotStart, TooManyProcesses."""
        ...

    async def processes(self) -> tuple[ProcessInfo, ...]:
        """Return its commands: all that run, and the newest that have ended and were not forgotten."""
        ...

    async def process(self, process_id: int) -> ProcessInfo:
        """Return one of them. Raises ProcessNotFound."""
        ...

    def output(
        self, process_id: int, *, stdout_from: int | None = None, stderr_from: int | None = None
    ) -> AsyncIterator[ProcessOutput | ProcessExit]:
        """Yield a command's output as it comes, and how it ended at last: without that, the stream broke off.

        It begins with what is kept, from these offsets on (None: the oldest byte that is kept). Any number may read; a
        foreground command waits for the slowest of its readers, and keeps its output for the first. Raises
        ProcessNotFound, StreamBroken.
        """
        ...

    async def wait(self, process_id: int, timeout_seconds: float | None = None) -> ProcessInfo:
        """Wait until a command has ended and return it; after the timeout, as it is then. Raises ProcessNotFound.

        The output of a foreground command must be read, or discarded, meanwhile.
        """
        ...

    async def discard_output(self, process_id: int) -> None:
        """Keep no more output of a command than the newest: from now on it is not held up by it, like a background one.

        Raises ProcessNotFound.
        """
        ...

    async def write_input(self, process_id: int, data: bytes) -> None:
        """Send input, waiting while the command does not read. Raises ProcessEnded, ProcessNotFound."""
        ...

    async def end_input(self, process_id: int) -> None:
        """Send the end of the input (to a terminal: nothing; send Ctrl-D as input). Raises ProcessNotFound."""
        ...

    async def resize(self, process_id: int, size: TerminalSize) -> None:
        """Set the size of a command's terminal. Raises ProcessNotFound."""
        ...

    async def signal(self, process_id: int, name: str) -> None:
        """Send a signal (`SIGTERM`) to a command's process group.

        Raises ProcessEnded, ProcessNotFound, InvalidOption.
        """
        ...

    async def kill(self, process_id: int) -> None:
        """Kill a command and every process that it started; does nothing when none is left. Raises ProcessNotFound."""
        ...

    async def forget(self, process_id: int) -> None:
        """Forget a command, with its output and its exit; kill it if it runs. Raises ProcessNotFound."""
        ...

    async def restart(self, process_id: int) -> ProcessInfo:
        """Kill and forget a command, and start it again as it was started, with a new number.

        Raises ProcessNotFound, CannotStart, TooManyProcesses.
        """
        ...

    async def ports(self) -> tuple[ListeningPort, ...]:
        """Return the TCP ports that its programs listen on."""
        ...

    def connect(self, port: int) -> AbstractAsyncContextManager[ByteStream]:
        """Connect to a port of its loopback device; close the connection at the block's end. Raises PortRefused."""
        ...

    async def usage(self) -> SandboxUsage:
        """Return what its machine uses now."""
        ...

    async def freeze(self, request: FreezeRequest) -> FrozenState:
        """Freeze the machine, and keep it on its node; return when it is kept. The sandbox goes on after an error.

        Raises DiskFull, HostError, SandboxPaused.
        """
        ...

    async def usage_series(self) -> UsageSeries:
        """Return what its machine has used so far. Asking is no use."""
        ...

    async def activity(self) -> SandboxActivity:
        """Return how it is used. Asking is no use."""
        ...
