"""Starts one QEMU process in its jail. QEMU inherits descriptors of every file that it uses.

A start is a list of steps: reserve the jail, open the channels, spawn the process. A clone's snapshot is loaded after
that, by the machine itself (clone.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TypeVar

from belljar.node.machines.deadlines import deadline_factor
from belljar.node.machines.host.cgroup import Bounds, Hierarchy, machine_group
from belljar.node.machines.host.descriptors import devnull
from belljar.node.machines.host.huge_pages import no_huge_pages
from belljar.node.machines.host.jail import Jail, Program, kvm_node, machine_uid, spawn
from belljar.node.machines.host.threads import in_thread
from belljar.node.machines.protocol import GUEST_MAC, Console, MachineSpec
from belljar.node.machines.qemu.command import Descriptors, Hardware, arguments
from belljar.node.machines.qemu.machine import QemuMachine, QemuProcess
from belljar.node.machines.qemu.monitor import Monitor
from belljar.node.machines.qemu.tsc import tsc_khz
from belljar.node.machines.timings import StepTimings
from belljar.settings import Settings

#: QEMU's own memory beside its guest's: code, translations, buffers, and the page cache charged to it.
_OWN_MEMORY_MB = 256
#: Reserved but untouched address space counts against the rlimit: stacks, arenas, the translation buffer.
_OWN_ADDRESSES_MB = 2048
#: Threads of block I/O (at most 64), bubblewrap's two processes, QEMU's own.
_OWN_PROCESSES = 96
_OWN_CPUS = 0.5
#: Holds whole frames; the transport stops reading at twice this.
_STREAM_BUFFER = 1024 * 1024
_CONSOLE_BUFFER = 64 * 1024

M = TypeVar("M", bound=QemuMachine)


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineFiles:
    """Descriptors of a machine's disks, memory and network device. They stay the caller's to close."""

    #: None for a clone, whose kernel runs already.
    kernel: int | None = None
    initramfs: int | None = None
    root: int
    script: int
    scratch: int | None
    #: Memory in a file: that of a snapshot source, or a snapshot's.
    memory: int | None = None
    #: The device state of a clone's snapshot.
    state: int | None = None
    #: Whether that state was written by itself, without the configuration that begins a migration.
    bare_state: bool = False
    #: Whether a machine with a state writes to its memory's file: no other machine has it.
    owns_memory: bool = False
    #: The slot's TAP device.
    tap: int | None = None


@dataclass(frozen=True, slots=True)
class _Channel:
    """A socket pair between belljar and QEMU."""

    host_end: socket.socket
    qemu_end: socket.socket


@dataclass(frozen=True, kw_only=True, slots=True)
class Launcher:
    """Starts the QEMU processes of this host."""

    settings: Settings
    program: Program
    accelerator: str
    hierarchies: tuple[Hierarchy, ...]
    owner: str

    async def launch(
        self, make: Callable[[QemuProcess], M], spec: MachineSpec, files: MachineFiles, stack: AsyncExitStack
    ) -> M:
        """Spawn QEMU and return `make` of it. Closing `stack` kills it and removes everything around it.

        Raises HostError, OSError.
        """
        timings = StepTimings()
        machine_id = f"{self.owner}.{secrets.token_hex(6)}"
        jail = await self._reserve_jail(spec, machine_id, stack)
        timings.record("prepare")
        with contextlib.ExitStack() as inherited:  # QEMU's ends are closed here as soon as QEMU has them
            agent, qmp, console = (_open_channel(stack, inherited) for _ in range(3))
            restore = None if files.state is None else _open_channel(stack, inherited)
            descriptors = Descriptors(
                kernel=files.kernel,
                initramfs=files.initramfs,
                root=files.root,
                script=files.script,
                scratch=files.scratch,
                memory=files.memory,
                state=files.state,
                tap=files.tap,
                restore=None if restore is None else restore.qemu_end.fileno(),
                agent=agent.qemu_end.fileno(),
                qmp=qmp.qemu_end.fileno(),
                console=console.qemu_end.fileno(),
            )
            argv = arguments(
                await self._hardware(spec),
                descriptors,
                bare_state=files.bare_state,
                owns_memory=files.owns_memory,
            )
            command = jail.command(self.program, argv)
            # The host's ends come first: nothing may fail or wait between the spawn and the registration of the kill.
            agent_stream = await _open_stream(stack, agent.host_end, _STREAM_BUFFER)
            console_stream = await _open_stream(stack, console.host_end, _CONSOLE_BUFFER)
            has_huge_pages = self.accelerator == "kvm" or files.state is None
            with contextlib.nullcontext() if has_huge_pages else no_huge_pages():
                process = await _spawn_qemu(command, jail.environment(), descriptors)
            machine = make(
                QemuProcess(
                    machine_id=machine_id,
                    process=process,
                    monitor=Monitor(
                        machine_id,
                        qmp.host_end,
                        timeout_factor=deadline_factor(self.settings.boot_timeout_seconds),
                    ),
                    group=jail.group,
                    agent=agent_stream,
                    console=Console(limit_bytes=self.settings.max_console_kb * 1024),
                    console_stream=console_stream,
                    restore=None if restore is None else restore.host_end,
                    memory=files.memory,
                    scratch=files.scratch,
                    phases=timings.phases,
                )
            )
            stack.push_async_callback(machine.kill)
        timings.record("spawn")
        return machine

    async def _reserve_jail(self, spec: MachineSpec, machine_id: str, stack: AsyncExitStack) -> Jail:
        """Reserve a user id, a cgroup and a device node for KVM, all released with `stack`."""
        uid = stack.enter_context(machine_uid(self.settings))
        group = await stack.enter_async_context(machine_group(self.hierarchies, machine_id, _bounds(spec)))
        kvm = stack.enter_context(kvm_node(machine_id, uid)) if self.accelerator == "kvm" else None
        address_mb = None if group.folders else spec.shape.memory_mb + _OWN_ADDRESSES_MB
        return Jail(uid=uid, group=group, address_bytes=address_mb and address_mb << 20, kvm=kvm)

    async def _hardware(self, spec: MachineSpec) -> Hardware:
        khz = await in_thread(tsc_khz) if self.accelerator == "tcg" else None
        return Hardware(spec.shape, self.accelerator, khz, GUEST_MAC if spec.shape.network else None)


def _open_channel(stack: AsyncExitStack, inherited: contextlib.ExitStack) -> _Channel:
    channel = _Channel(*socket.socketpair())
    stack.callback(channel.host_end.close)
    inherited.callback(channel.qemu_end.close)
    return channel


async def _open_stream(
    stack: AsyncExitStack, host_end: socket.socket, limit: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(sock=host_end, limit=limit)
    stack.callback(writer.close)
    return reader, writer


async def _spawn_qemu(
    command: list[str], environment: dict[str, str], descriptors: Descriptors
) -> asyncio.subprocess.Process:
    return await spawn(
        command,
        env=environment,
        stdin=devnull(),
        stdout=devnull(),
        stderr=asyncio.subprocess.PIPE,
        pass_fds=[number for number in dataclasses.astuple(descriptors) if number is not None],
        start_new_session=True,  # belljar handles a Ctrl-C at the terminal itself
    )


def _bounds(spec: MachineSpec) -> Bounds:
    return Bounds(
        memory_bytes=(spec.shape.memory_mb + _OWN_MEMORY_MB) << 20,
        cpus=spec.shape.vcpus + _OWN_CPUS,
        processes=spec.shape.vcpus + _OWN_PROCESSES,
        weight=spec.weight,
    )
