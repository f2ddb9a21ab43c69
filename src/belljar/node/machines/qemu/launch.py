"""Starts one QEMU process in its jail, with everything that it may open handed to it as descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TypeVar

from belljar.node.machines.host.cgroup import Bounds, Hierarchy, machine_group
from belljar.node.machines.host.faults import devnull
from belljar.node.machines.host.jail import Jail, Program, kvm_node, machine_uid, spawn
from belljar.node.machines.host.threads import in_thread
from belljar.node.machines.protocol import GUEST_MAC, Console, MachineSpec
from belljar.node.machines.qemu.command import Descriptors, Hardware, arguments, restore_orders
from belljar.node.machines.qemu.machine import QemuMachine
from belljar.node.machines.qemu.monitor import Monitor
from belljar.node.machines.qemu.tsc import tsc_khz
from belljar.node.machines.steps import Steps
from belljar.settings import Settings

#: QEMU's own memory beside its guest's: code, translations, buffers, and the page cache charged to it.
_OWN_MEMORY_MB = 256
#: Reserved but untouched address space counts against the rlimit: stacks, arenas, the translation buffer.
_OWN_ADDRESSES_MB = 2048
#: Threads of block I/O (at most 64), bubblewrap's two processes, QEMU's own.
_OWN_PROCESSES = 96
_OWN_CPUS = 0.5
#: Room for whole frames; the transport stops reading at twice this.
_STREAM_BUFFER = 1024 * 1024
_CONSOLE_BUFFER = 64 * 1024


M = TypeVar("M", bound=QemuMachine)


@dataclass(frozen=True, kw_only=True, slots=True)
class Files:
    """What a machine's disks and memory are: descriptors that stay the caller's."""

    #: None for a clone, whose kernel runs already.
    kernel: int | None = None
    initramfs: int | None = None
    root: int
    script: int
    scratch: int | None
    #: Memory that is a file: a template's or a snapshot's.
    memory: int | None = None
    #: The device state that a clone begins with.
    state: int | None = None
    #: Of the slot's TAP device.
    tap: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Launcher:
    """What every QEMU of this host has in common."""

    settings: Settings
    program: Program
    accelerator: str
    hierarchies: tuple[Hierarchy, ...]
    owner: str

    async def launch(self, kind: type[M], spec: MachineSpec, files: Files, stack: AsyncExitStack) -> M:
        """Start QEMU; it is killed, and everything around it removed, when `held` is closed.

        Raises HostError, OSError.
        """
        steps, shape = Steps(), spec.shape
        machine_id = f"{self.owner}.{secrets.token_hex(6)}"
        uid = stack.enter_context(machine_uid(self.settings))
        group = await stack.enter_async_context(machine_group(self.hierarchies, machine_id, _bounds(spec)))
        kvm = stack.enter_context(kvm_node(machine_id, uid)) if self.accelerator == "kvm" else None
        address_mb = None if group.folders else shape.memory_mb + _OWN_ADDRESSES_MB
        jail = Jail(uid=uid, group=group, address_bytes=address_mb and address_mb << 20, kvm=kvm)
        steps.done("prepare")
        with contextlib.ExitStack() as passed:  # what QEMU inherits is closed here as soon as it has it
            agent, qmp, console = (_socket_pair(stack, passed) for _ in range(3))
            descriptors = Descriptors(
                **{each.name: getattr(files, each.name) for each in dataclasses.fields(files)},
                orders=_orders(files.state, stack, passed),
                agent=agent.theirs.fileno(),
                qmp=qmp.theirs.fileno(),
                console=console.theirs.fileno(),
            )
            khz = await in_thread(tsc_khz) if self.accelerator == "tcg" else None
            hardware = Hardware(shape, self.accelerator, khz, GUEST_MAC if shape.network else None)
            command = jail.command(self.program, arguments(hardware, descriptors))
            # Our ends first: nothing may fail, or wait, between the start of a process and who ends it.
            agent_stream = await _stream(stack, agent.ours, _STREAM_BUFFER)
            console_stream = await _stream(stack, console.ours, _CONSOLE_BUFFER)
            process = await _spawn(command, jail.environment(), descriptors)
            machine = kind(
                machine_id,
                process,
                Monitor(machine_id, qmp.ours),
                group,
                agent=agent_stream,
                console=Console(limit_bytes=self.settings.max_console_kb * 1024),
                console_stream=console_stream,
                phases=steps.phases,
            )
            stack.push_async_callback(machine.kill)
        steps.done("spawn")
        return machine


@dataclass(frozen=True, slots=True)
class _SocketPair:
    ours: socket.socket
    theirs: socket.socket


def _socket_pair(stack: AsyncExitStack, passed: contextlib.ExitStack) -> _SocketPair:
    pair = _SocketPair(*socket.socketpair())
    stack.callback(pair.ours.close)
    passed.callback(pair.theirs.close)
    return pair


async def _stream(
    stack: AsyncExitStack, end: socket.socket, limit: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(sock=end, limit=limit)
    stack.callback(writer.close)
    return reader, writer


def _orders(state: int | None, stack: AsyncExitStack, passed: contextlib.ExitStack) -> int | None:
    """Where a clone reads what it is to do; it is there already."""
    if state is None:
        return None
    pair = _socket_pair(stack, passed)
    pair.ours.sendall(restore_orders(state))
    return pair.theirs.fileno()


async def _spawn(
    command: list[str], environment: dict[str, str], descriptors: Descriptors
) -> asyncio.subprocess.Process:
    return await spawn(
        command,
        env=environment,
        stdin=devnull(),
        stdout=devnull(),
        stderr=asyncio.subprocess.PIPE,
        pass_fds=[number for number in dataclasses.astuple(descriptors) if number is not None],
        start_new_session=True,  # a Ctrl-C at the terminal is belljar's to handle
    )


def _bounds(spec: MachineSpec) -> Bounds:
    return Bounds(
        memory_bytes=(spec.shape.memory_mb + _OWN_MEMORY_MB) << 20,
        cpus=spec.shape.vcpus + _OWN_CPUS,
        processes=spec.shape.vcpus + _OWN_PROCESSES,
        weight=spec.weight,
    )
