"""The two protocols between the worker and whatever runs machines.

A `Hypervisor` makes `Machine`s; a machine is one microVM that belongs to the `async with` block that made it: when the
block ends, however it ends, the virtual machine is dead, reaped, and all that it touched is gone. A machine boots, or
it is cloned from a snapshot: what a template, a machine that was booted to be frozen, wrote into a folder.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from belljar.model.errors import MachineError
from belljar.model.image import Image


class BadSnapshot(MachineError):
    """A machine cannot go on from its snapshot, and no other will: it is not whole, or the hypervisor refuses it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What a machine is cut to."""

    vcpus: int
    memory_mb: int
    #: Size of a scratch disk for everything the guest writes; None: it writes to memory.
    disk_mb: int | None = None
    #: Whether it has a network device.
    network: bool = False
    #: What each of its disks may do, in MiB and operations per second; None: as much as the host can.
    disk_mb_per_second: float | None = None
    disk_iops: int | None = None
    #: What its network may carry in each direction, in megabits (10^6 bits) per second.
    network_mbit_per_second: float | None = None


#: Of every machine's network device, since a clone has what its template had. Unicast and locally administered: the
#: second lowest bit of the first byte is set, the lowest is not.
GUEST_MAC = "02:62:6a:00:00:02"


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkSlot:
    """The network place that a machine is plugged into. Whoever made it owns it, and gives it to one machine at a time.

    From inside every slot looks the same; outside each is a namespace of its own.
    """

    #: A mounted network namespace, such as /run/netns/belljar-…
    namespace: Path
    #: Name of the TAP device in it.
    tap: str
    #: GUEST_MAC.
    guest_mac: str
    #: Address and prefix length of the guest, such as 172.30.0.2/30.
    guest_address: str
    gateway: str
    #: What the guest's resolv.conf names.
    nameservers: tuple[str, ...]
    mtu: int = 1500
    #: An open descriptor of the device, the owner's to close, where none but the owner may enter the namespace.
    device: int | None = None


#: Enough for a machine that nobody waits for to get on beside jobs that use every processor.
BACKGROUND_WEIGHT = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineSpec:
    """What to boot or clone. The paths are the host's, readable by belljar; the guest sees disks, not paths."""

    image: Image
    shape: Shape
    #: Read-only filesystem image that becomes `/dev/vdb`; None for templates and clones: a clone is given it later.
    script_disk: Path | None
    #: Where the machine is plugged in, if its shape has a network; a template is plugged in nowhere.
    slot: NetworkSlot | None = None
    #: Nobody waits for it: what it does is to take little from those for whom somebody does.
    background: bool = False

    @property
    def weight(self) -> int:
        """Of its processes among others that want a processor, where 100 is usual."""
        return BACKGROUND_WEIGHT if self.background else 100


#: Size of `/dev/vdb` in templates, and so in every clone: the guest learns it once. Room for the largest script.
SCRIPT_DISK_BYTES = 512 << 20


class DeathCause(StrEnum):
    #: The guest ended its machine: powered off, reset, or its agent gave up.
    GUEST_EXIT = "guest_exit"
    #: The guest's kernel panicked.
    GUEST_PANIC = "guest_panic"
    #: The hypervisor stopped with an error of its own (QEMU's run state internal-error, a crash).
    HYPERVISOR = "hypervisor"
    #: A signal from outside killed the hypervisor: an operator, or the host's out-of-memory killer.
    KILLED = "killed"
    #: The host had too little of something: memory, files, room on a disk.
    HOST = "host"
    #: A clone could not go on from its snapshot.
    SNAPSHOT = "snapshot"


@dataclass(frozen=True, kw_only=True, slots=True)
class Death:
    """How a machine ended before it was told to."""

    cause: DeathCause
    #: One sentence for the log and the job's error.
    message: str


@dataclass(slots=True)
class Console:
    """The first bytes of the serial console, at most `limit_bytes`; what follows is counted and dropped."""

    limit_bytes: int
    data: bytearray = field(default_factory=bytearray)
    dropped_bytes: int = 0

    def add(self, chunk: bytes) -> None:
        room = self.limit_bytes - len(self.data)
        self.data += chunk[:room]
        self.dropped_bytes += max(0, len(chunk) - room)


class Machine(Protocol):
    """One running microVM."""

    id: str
    #: The host's end of the byte stream to the agent; a slow reader of it slows the guest.
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    console: Console
    #: Milliseconds that each named step of the start took, in order.
    phases: dict[str, float]

    def pids(self) -> list[int]:
        """The hypervisor's processes on this host."""
        ...

    async def death(self) -> Death:
        """Wait until the machine is dead; says why. May be awaited by several, and after the fact."""
        ...

    async def kill(self) -> None:
        """End the machine now and reap it. Idempotent."""
        ...


class Clone(Machine, Protocol):
    """A machine that was cloned: it runs, and its agent waits to be told who it is (`Session.resume`)."""

    async def insert(self, script_disk: Path) -> None:
        """Make this file the contents of `/dev/vdb`, which the guest has not mounted now. May be called again.

        Raises HostError when it is over SCRIPT_DISK_BYTES.
        """
        ...

    def set_foreground(self) -> None:
        """Somebody will wait for it from now on: it is in the background no more."""
        ...


class Template(Clone, Protocol):
    """A machine that was booted to be frozen. Its script disk is empty at first, and of SCRIPT_DISK_BYTES."""

    async def freeze(self) -> None:
        """Write its state into its folder, from which clones are made. It runs no more.

        Raises MachineError when it cannot be frozen.
        """
        ...


class Hypervisor(Protocol):
    """What makes machines on this host."""

    #: `qemu` or `firecracker`.
    name: str
    #: `kvm` or `tcg`.
    accelerator: str

    @property
    def version(self) -> str:
        """Of the hypervisor's program."""
        ...

    @property
    def identity(self) -> str:
        """What changes whenever snapshots of it stop being good: the program, its version, its command line."""
        ...

    def machine(self, spec: MachineSpec) -> AbstractAsyncContextManager[Machine]:
        """Start a machine. Raises MachineError or HostError; leaves nothing behind if it does."""
        ...

    def template(self, spec: MachineSpec, folder: Path) -> AbstractAsyncContextManager[Template]:
        """Boot a machine whose memory and disks lie in `folder`, an empty folder of the snapshot's own."""
        ...

    def clone(self, spec: MachineSpec, folder: Path) -> AbstractAsyncContextManager[Clone]:
        """A machine that goes on where the template in `folder` was frozen. `folder` is not changed.

        Raises BadSnapshot when no clone of it will ever run, HostError when this host has too little of something,
        MachineError when it is not clear why; leaves nothing behind if it does.
        """
        ...

    def forget(self, folder: Path) -> None:
        """The snapshot in `folder` will not be cloned again: let go of what is kept of it. Clones that run go on."""
        ...
