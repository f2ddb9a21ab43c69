"""Starts QEMU machines: each in its own jail, with its own bounds, everything it may open handed to it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import os
import re
import secrets
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from belljar.errors import HostError
from belljar.machines.cgroup import Bounds, find_hierarchies, machine_group
from belljar.machines.jail import Jail, Program, kvm_node, machine_uid, program
from belljar.machines.owner import owner_name
from belljar.machines.protocol import Console, Machine, MachineSpec
from belljar.machines.qemu.command import Descriptors, arguments
from belljar.machines.qemu.machine import QemuMachine
from belljar.machines.qemu.monitor import Monitor
from belljar.machines.qemu.scratch import scratch_disk
from belljar.machines.qemu.tsc import tsc_khz
from belljar.machines.tap import open_tap
from belljar.settings import Settings

#: What QEMU loads by name besides its libraries: accelerators that are modules, firmware.
_FOLDERS = (
    "/usr/lib/x86_64-linux-gnu/qemu",
    "/usr/lib64/qemu",
    "/usr/lib/qemu",
    "/usr/share/qemu",
    "/usr/share/seabios",
)
#: QEMU's own memory beside its guest's: code, translations (64 MB), buffers, and the page cache charged to it.
_OWN_MEMORY_MB = 256
#: Reserved but untouched address space counts against the rlimit: stacks, arenas, the translation buffer.
_OWN_ADDRESSES_MB = 2048
#: Threads of block I/O (at most 64), bubblewrap's two processes, QEMU's own.
_OWN_PROCESSES = 96
_OWN_CPUS = 0.5
#: Room for whole frames; the transport stops reading at twice this.
_STREAM_BUFFER = 1024 * 1024


@dataclass(slots=True)
class _Steps:
    """Names the time since the last step."""

    phases: dict[str, float] = field(default_factory=dict)
    at: float = field(default_factory=time.monotonic)

    def done(self, name: str) -> None:
        now = time.monotonic()
        self.phases[name] = round((now - self.at) * 1000, 3)
        self.at = now


class QemuHypervisor:
    """The protocol's Hypervisor over QEMU's microvm. Raises MissingTool when made where QEMU is not installed."""

    name = "qemu"

    def __init__(self, settings: Settings, accelerator: str) -> None:
        self.accelerator = accelerator
        self._settings = settings
        self._program: Program = program(settings.qemu, *_FOLDERS)
        self._hierarchies = find_hierarchies()
        self._owner = owner_name(os.getpid())

    @property
    def version(self) -> str:
        """QEMU's version, such as 7.2.22."""
        return qemu_version(self._program.executable)

    @property
    def identity(self) -> str:
        """What changes whenever the program is replaced; cheaper than asking it for its version."""
        status = self._program.executable.stat()
        return f"{self._program.executable}:{status.st_size}:{status.st_mtime_ns}"

    @asynccontextmanager
    async def machine(self, spec: MachineSpec) -> AsyncIterator[Machine]:
        """Start a machine; it has begun to boot when the block begins. Raises MissingTool, HostError, DiskFull."""
        held = AsyncExitStack()
        try:
            yield await self._start(spec, held)
        finally:
            # A worker that is cancelled twice still leaves nothing behind.
            closing = asyncio.create_task(held.aclose())
            try:
                await asyncio.shield(closing)
            except asyncio.CancelledError:
                await asyncio.wait({closing})
                raise

    async def _start(self, spec: MachineSpec, held: AsyncExitStack) -> QemuMachine:
        machine_id = f"{self._owner}.{secrets.token_hex(6)}"
        steps = _Steps()
        uid = held.enter_context(machine_uid(self._settings))
        group = await held.enter_async_context(machine_group(self._hierarchies, machine_id, _bounds(spec)))
        scratch = await held.enter_async_context(
            scratch_disk(self._settings.data_dir / "run" / "scratch", spec.shape.disk_mb)
        )
        kvm = held.enter_context(kvm_node(machine_id, uid)) if self.accelerator == "kvm" else None
        address_mb = None if group.folders else spec.shape.memory_mb + _OWN_ADDRESSES_MB
        jail = Jail(uid=uid, group=group, address_bytes=address_mb and address_mb << 20, kvm=kvm)
        steps.done("prepare")

        with contextlib.ExitStack() as passed:  # what QEMU inherits is closed here as soon as it has it
            agent, qmp, console = (_socket_pair(held, passed) for _ in range(3))
            descriptors = Descriptors(
                kernel=_opened(spec.image.kernel, passed),
                initramfs=_opened(spec.image.initramfs, passed),
                root=_opened(spec.image.root, passed),
                script=_opened(_script_disk(spec), passed),
                scratch=scratch,
                agent=agent.theirs.fileno(),
                qmp=qmp.theirs.fileno(),
                console=console.theirs.fileno(),
                tap=await _tap(spec, passed),
            )
            khz = tsc_khz() if self.accelerator == "tcg" else None
            mac = spec.slot.guest_mac if spec.slot is not None else None
            command = jail.command(self._program, arguments(spec.shape, self.accelerator, descriptors, khz, mac))
            process = await _spawn(command, jail.environment(), descriptors)
        machine = QemuMachine(
            machine_id,
            process,
            Monitor(machine_id, qmp.ours),
            agent=await asyncio.open_connection(sock=agent.ours, limit=_STREAM_BUFFER),
            console=Console(limit_bytes=self._settings.max_console_kb * 1024),
            console_stream=await asyncio.open_connection(sock=console.ours),
            phases=steps.phases,
        )
        held.push_async_callback(machine.kill)
        steps.done("spawn")
        return machine


@dataclass(frozen=True, slots=True)
class _SocketPair:
    ours: socket.socket
    theirs: socket.socket


def _socket_pair(held: AsyncExitStack, passed: contextlib.ExitStack) -> _SocketPair:
    pair = _SocketPair(*socket.socketpair())
    held.callback(pair.ours.close)
    passed.callback(pair.theirs.close)
    return pair


async def _spawn(
    command: list[str], environment: dict[str, str], descriptors: Descriptors
) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *command,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=[number for number in dataclasses.astuple(descriptors) if number is not None],
            start_new_session=True,  # a Ctrl-C at the terminal is belljar's to handle
        )
    except OSError as error:
        raise HostError(f"cannot start a machine: {error.strerror}; are there enough processes and files?") from error


@functools.cache
def qemu_version(executable: Path) -> str:
    """What `--version` says, such as 7.2.22. Raises HostError when the program cannot be run."""
    try:
        words = subprocess.run([executable, "--version"], capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise HostError(f"{executable} --version failed: {error}") from error
    found = re.search(r"version (\d[\w.]*)", words)
    return found[1] if found else "unknown"


def _script_disk(spec: MachineSpec) -> Path:
    if spec.script_disk is None:
        raise ValueError("a machine that boots is given its script's disk at once")
    return spec.script_disk


async def _tap(spec: MachineSpec, held: contextlib.ExitStack) -> int | None:
    """A descriptor of the slot's TAP device, closed with `held`; None without a slot. Raises HostError."""
    if spec.slot is None:
        return None
    opening = asyncio.create_task(asyncio.to_thread(open_tap, spec.slot))
    try:
        descriptor = await asyncio.shield(opening)
    except asyncio.CancelledError:
        await asyncio.wait({opening})
        if opening.exception() is None:
            os.close(opening.result())
        raise
    held.callback(os.close, descriptor)
    return descriptor


def _bounds(spec: MachineSpec) -> Bounds:
    return Bounds(
        memory_bytes=(spec.shape.memory_mb + _OWN_MEMORY_MB) << 20,
        cpus=spec.shape.vcpus + _OWN_CPUS,
        processes=spec.shape.vcpus + _OWN_PROCESSES,
    )


def _opened(path: Path, held: contextlib.ExitStack) -> int:
    """A descriptor to read from, closed with `held`. Raises HostError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}; build the image or upload the script again") from error
    held.callback(os.close, descriptor)
    return descriptor
