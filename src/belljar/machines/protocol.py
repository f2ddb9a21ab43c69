"""The two protocols between the worker and whatever runs machines.

A `Hypervisor` makes `Machine`s; a machine is one microVM that belongs to the `async with` block that made it: when the
block ends, however it ends, the virtual machine is dead, reaped, and all that it touched is gone.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from belljar.images.manifest import Image


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What a machine is cut to."""

    vcpus: int
    memory_mb: int
    #: Size of a scratch disk for everything the guest writes; None: it writes to memory.
    disk_mb: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineSpec:
    """What to boot. The paths are the host's, readable by belljar; the guest sees disks, not paths."""

    image: Image
    shape: Shape
    #: Read-only filesystem image that becomes `/dev/vdb`.
    script_disk: Path


class DeathCause(StrEnum):
    #: The guest ended its machine: powered off, reset, or its agent gave up.
    GUEST_EXIT = "guest_exit"
    #: The guest's kernel panicked.
    GUEST_PANIC = "guest_panic"
    #: The hypervisor stopped with an error of its own (QEMU's run state internal-error, a crash).
    HYPERVISOR = "hypervisor"
    #: A signal from outside killed the hypervisor: an operator, or the host's out-of-memory killer.
    KILLED = "killed"


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

    async def death(self) -> Death:
        """Wait until the machine is dead; says why. May be awaited by several, and after the fact."""
        ...

    async def kill(self) -> None:
        """End the machine now and reap it. Idempotent."""
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

    def machine(self, spec: MachineSpec) -> AbstractAsyncContextManager[Machine]:
        """Start a machine. Raises MachineError or HostError; leaves nothing behind if it does."""
        ...
