"""The protocols of hypervisors and their machines.

A `Hypervisor` starts `Machine`s. A machine is one microVM that belongs to the `async with` block that started it: after
the block the microVM is dead and reaped, and everything around it is removed. A machine boots, or it is a clone of a
snapshot: the folder into which a `SnapshotSource`, a machine booted for that purpose, was frozen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from belljar.model.errors import MachineError
from belljar.model.image import Image
from belljar.node.frozen.protocol import FrozenParts, PartSource


class BadSnapshot(MachineError):
    """No machine can be cloned from this snapshot: it is incomplete, or the hypervisor refuses it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The size of a machine, its devices and their rates."""

    vcpus: int
    memory_mb: int
    #: Size of a scratch disk that takes everything the guest writes; None: it writes to memory.
    disk_mb: int | None = None
    #: Whether it has a network device.
    network: bool = False
    #: Limits of each of its disks, in MiB and operations per second; None: no limit.
    disk_mb_per_second: float | None = None
    disk_iops: int | None = None
    #: Limit of its network in each direction, in megabits (10^6 bits) per second; None: no limit.
    network_mbit_per_second: float | None = None


#: Address of every machine's network device: a clone has its snapshot's. Unicast and locally administered: the second
#: lowest bit of the first byte is set, the lowest is not.
GUEST_MAC = "02:62:6a:00:00:02"


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkSlot:
    """The network place of one machine at a time. Its maker owns it.

    Inside the guest every slot looks the same; on the host each is a namespace of its own.
    """

    #: A mounted network namespace, such as `/run/netns/belljar-…`.
    namespace: Path
    #: Name of the TAP device in it.
    tap: str
    #: GUEST_MAC.
    guest_mac: str
    #: Address and prefix length of the guest, such as 172.30.0.2/30.
    guest_address: str
    gateway: str
    #: Addresses for the guest's resolv.conf.
    nameservers: tuple[str, ...]
    mtu: int = 1500
    #: An open descriptor of the device, the owner's to close, where only the owner may enter the namespace.
    device: int | None = None


#: Lets a machine in the background progress beside jobs that use every processor.
BACKGROUND_WEIGHT = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineSpec:
    """A machine to boot or clone. Paths are the host's, readable by belljar; the guest sees disks, not paths."""

    image: Image
    shape: Shape
    #: Read-only filesystem image for `/dev/vdb`; None for sandboxes, which have no script, and for snapshot sources and
    #: clones, whose disk is attached later.
    script_disk: Path | None
    #: The machine's network slot, if its shape has a network. A snapshot source has none.
    slot: NetworkSlot | None = None
    #: Whether no job waits for it; it then leaves the processors to machines of jobs.
    background: bool = False
    #: Whether a machine that boots may be frozen later (`Machine.frozen`); clones always may.
    freezable: bool = False

    @property
    def weight(self) -> int:
        """Return the processor share of its processes, where the usual is 100."""
        return BACKGROUND_WEIGHT if self.background else 100


#: Size of `/dev/vdb` in snapshot sources and clones: the guest reads it once. It holds the largest script.
SCRIPT_DISK_BYTES = 512 << 20


class DeathCause(StrEnum):
    """What ended a machine."""

    #: The guest ended its machine: powered off, reset, or its agent gave up.
    GUEST_EXIT = "guest_exit"
    #: The guest's kernel panicked.
    GUEST_PANIC = "guest_panic"
    #: The hypervisor stopped with an error of its own (QEMU's run state internal-error, a crash).
    HYPERVISOR = "hypervisor"
    #: A signal from outside killed the hypervisor: of an operator, or of the kernel because of its memory limit.
    KILLED = "killed"
    #: The host is short of something: memory, open files, disk space.
    HOST = "host"
    #: The hypervisor could not restore the clone's snapshot.
    SNAPSHOT = "snapshot"


@dataclass(frozen=True, kw_only=True, slots=True)
class Death:
    """The end of a machine that belljar did not cause."""

    cause: DeathCause
    #: One sentence for the log and the job's error.
    message: str


@dataclass(slots=True)
class Console:
    """The first bytes of the serial console, at most `limit_bytes`; the rest is counted and dropped."""

    limit_bytes: int
    data: bytearray = field(default_factory=bytearray)
    dropped_bytes: int = 0

    def add(self, chunk: bytes) -> None:
        """Append output as far as the limit allows."""
        free_bytes = self.limit_bytes - len(self.data)
        self.data += chunk[:free_bytes]
        self.dropped_bytes += max(0, len(chunk) - free_bytes)


class Machine(Protocol):
    """One running microVM."""

    id: str
    #: The host's end of the byte stream to the agent; a slow reader slows the guest.
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    console: Console
    #: Milliseconds of each named step of the start, in order.
    phases: dict[str, float]

    def pids(self) -> list[int]:
        """Return the ids of the hypervisor's processes on this host."""
        ...

    async def death(self) -> Death:
        """Wait until the machine is dead, and return why. Several tasks may wait, also after the death."""
        ...

    async def kill(self) -> None:
        """Kill the machine now and reap it. Idempotent."""
        ...

    def frozen(self) -> AbstractAsyncContextManager[Collection[PartSource]]:
        """Stop the guest, whose agent must be suspended, and provide the machine's parts while the block runs.

        The guest stays stopped, also when an error is raised. Raises MachineError, HostError.
        """
        ...

    async def thaw(self) -> None:
        """Let a guest that was stopped continue; its agent waits for `AgentConnection.resume`. Raises MachineError."""
        ...


class Clone(Machine, Protocol):
    """A running machine from a snapshot. Its agent waits for its identity (`AgentConnection.resume`)."""

    async def attach_script(self, script_disk: Path) -> None:
        """Make this file the contents of `/dev/vdb`, which the guest must not have mounted. May be called again.

        Raises HostError when it is over SCRIPT_DISK_BYTES, DiskFull.
        """
        ...

    def set_foreground(self) -> None:
        """Give the machine the usual processor share: a job will wait for it from now on."""
        ...


class WaitingProcess(Protocol):
    """A hypervisor's process that was started for a snapshot before anybody needs a clone, in the jail of a machine.

    Nothing of the snapshot is loaded, and nothing of a job is in it. It ends with the block that started it; a clone
    that is made of it ends with its own block.
    """

    id: str

    @property
    def is_usable(self) -> bool:
        """Whether it lives and is not stopped, as far as the host's kernel knows."""
        ...

    def pids(self) -> list[int]:
        """Return the ids of its processes on this host."""
        ...

    async def death(self) -> Death:
        """Wait until it is dead, and return why. Several tasks may wait, also after the death."""
        ...


class SnapshotSource(Clone, Protocol):
    """A machine booted to be frozen. Its script disk has SCRIPT_DISK_BYTES and is empty at first."""

    async def freeze(self) -> None:
        """Write its state into the snapshot's folder, and end it.

        Raises MachineError when it cannot be frozen.
        """
        ...


class Hypervisor(Protocol):
    """A driver that starts machines on this host."""

    #: `qemu` or `firecracker`.
    name: str
    #: `kvm` or `tcg`.
    accelerator: str

    @property
    def version(self) -> str:
        """Return the version of the hypervisor's program."""
        ...

    @property
    def identity(self) -> str:
        """Return a string that changes whenever older snapshots become unusable: program, version, command line."""
        ...

    def machine(self, spec: MachineSpec) -> AbstractAsyncContextManager[Machine]:
        """Start a machine that boots. Raises MachineError or HostError; then nothing is left behind."""
        ...

    def snapshot_source(self, spec: MachineSpec, folder: Path) -> AbstractAsyncContextManager[SnapshotSource]:
        """Boot a machine that can be frozen into `folder`, which must be empty. Raises as `machine` does."""
        ...

    def waiting_process(self, spec: MachineSpec, folder: Path) -> AbstractAsyncContextManager[WaitingProcess]:
        """Start a process that waits to become a clone of the snapshot in `folder`; it is ready when the block begins.

        `spec` has the slot of the later clone, if its shape has a network. Raises as `clone` does.
        """
        ...

    def clone(
        self, spec: MachineSpec, folder: Path, process: WaitingProcess | None = None
    ) -> AbstractAsyncContextManager[Clone]:
        """Start a machine that continues from the snapshot in `folder`, which is not changed.

        It takes over `process`, which this hypervisor started for the same snapshot and slot, whose block must last
        longer. When that process does not answer in a bounded time, it is killed, and a new one is started.

        Raises BadSnapshot when no clone of it will ever run, HostError when this host is short of something,
        MachineError when the reason is unknown; then nothing is left behind.
        """
        ...

    def restored(self, spec: MachineSpec, parts: FrozenParts) -> AbstractAsyncContextManager[Clone]:
        """Start a machine that continues from these parts of a machine with the same image and shape.

        Several may be restored from the same parts; they share memory that none has written. Raises SnapshotUnusable,
        and as `clone` does.
        """
        ...

    def release_snapshot(self, folder: Path) -> None:
        """Release memory held for clones of the snapshot in `folder`. Running clones keep theirs."""
        ...
