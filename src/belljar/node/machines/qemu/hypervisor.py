"""QEMU machines: booted, booted to be frozen, or cloned from what was frozen."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from belljar.model.errors import HostError, host_error
from belljar.node.machines.host.cgroup import find_hierarchies
from belljar.node.machines.host.faults import HOST_ERRNOS
from belljar.node.machines.host.jail import Program, program
from belljar.node.machines.host.owner import owner_name
from belljar.node.machines.host.readonly import ReadOnlyFiles
from belljar.node.machines.host.shielded_stack import shielded_exit_stack, uninterrupted
from belljar.node.machines.host.tap import dead_end, opened_tap
from belljar.node.machines.host.threads import in_thread
from belljar.node.machines.protocol import SCRIPT_DISK_BYTES, BadSnapshot, Clone, Machine, MachineSpec, Template
from belljar.node.machines.qemu import command
from belljar.node.machines.qemu.frozen import Frozen
from belljar.node.machines.qemu.launch import Files, Launcher
from belljar.node.machines.qemu.machine import QemuClone, QemuMachine, QemuTemplate
from belljar.node.machines.qemu.memory import copy_sparse, new_memory, reopened
from belljar.node.machines.qemu.scratch import scratch_disk
from belljar.settings import Settings
from belljar.system.host_errors import host_errors

#: What QEMU loads by name besides its libraries: accelerators that are modules, firmware.
_FOLDERS = (
    "/usr/lib/x86_64-linux-gnu/qemu",
    "/usr/lib64/qemu",
    "/usr/lib/qemu",
    "/usr/share/qemu",
    "/usr/share/seabios",
)


class QemuHypervisor:
    """The protocol's Hypervisor over QEMU's microvm. Raises MissingTool when made where QEMU is not installed."""

    name = "qemu"

    def __init__(self, settings: Settings, accelerator: str) -> None:
        self.accelerator = accelerator
        self._settings = settings
        self._program: Program = program(settings.qemu, *_FOLDERS)
        self._launcher = Launcher(
            settings=settings,
            program=self._program,
            accelerator=accelerator,
            hierarchies=tuple(find_hierarchies()),
            owner=owner_name(os.getpid()),
        )
        self._frozen: dict[Path, Frozen] = {}
        self._loading = asyncio.Lock()
        self._read_only = ReadOnlyFiles(settings.data_dir)

    @property
    def version(self) -> str:
        """QEMU's version, such as 7.2.22."""
        return qemu_version(self._program.executable)

    @property
    def identity(self) -> str:
        """The program as a file, which is cheaper than asking it for its version, and the code that calls it."""
        status = self._program.executable.stat()
        return f"{self._program.executable}:{status.st_size}:{status.st_mtime_ns}:{_command_digest()}"

    @asynccontextmanager
    async def machine(self, spec: MachineSpec) -> AsyncIterator[Machine]:
        """Start a machine; it has begun to boot when the block begins. Raises MissingTool, HostError, DiskFull."""
        if spec.script_disk is None:
            raise ValueError("a machine that boots is given its script's disk at once")
        async with shielded_exit_stack() as stack:
            with host_errors("start a machine"):
                files = Files(
                    kernel=await self._opened(spec.image.kernel, stack),
                    initramfs=await self._opened(spec.image.initramfs, stack),
                    root=await self._opened(spec.image.root, stack),
                    script=await self._opened(spec.script_disk, stack),
                    scratch=await self._scratch(spec, stack),
                    tap=await opened_tap(spec.slot, stack),
                )
                machine = await self._launcher.launch(QemuMachine, spec, files, stack)
            yield machine

    @asynccontextmanager
    async def template(self, spec: MachineSpec, folder: Path) -> AsyncIterator[Template]:
        """Boot a machine to be frozen into `folder`. Raises as `machine` does."""
        async with shielded_exit_stack() as stack:
            with host_errors("start a machine"):
                memory = new_memory(spec.shape.memory_mb << 20)
                stack.callback(os.close, memory)
                script = self._empty_disk(SCRIPT_DISK_BYTES, stack)
                files = Files(
                    kernel=await self._opened(spec.image.kernel, stack),
                    initramfs=await self._opened(spec.image.initramfs, stack),
                    root=await self._opened(spec.image.root, stack),
                    script=reopened(script, stack),
                    scratch=await self._scratch(spec, stack),
                    memory=memory,
                    tap=await dead_end(stack) if spec.shape.network else None,
                )
                template = await self._launcher.launch(QemuTemplate, spec, files, stack)
            template.reads(script)
            template.keeps(folder, memory, files.scratch)
            yield template

    @asynccontextmanager
    async def clone(self, spec: MachineSpec, folder: Path) -> AsyncIterator[Clone]:
        """Clone what was frozen into `folder`; its memory is loaded once. Raises MachineError, HostError, DiskFull."""
        async with shielded_exit_stack() as stack:
            with host_errors("clone a machine"):
                frozen = (await self._frozen_in(folder)).stack(stack)
                scratch = None
                if frozen.scratch is not None:
                    scratch = self._empty_disk(0, stack)
                    await uninterrupted(in_thread(copy_sparse, frozen.scratch, scratch))
                script = self._empty_disk(SCRIPT_DISK_BYTES, stack)
                files = Files(
                    root=await self._opened(spec.image.root, stack),
                    script=reopened(script, stack),  # the guest may not write to it
                    scratch=scratch,
                    memory=frozen.memory,
                    state=reopened(frozen.state, stack),
                    tap=await opened_tap(spec.slot, stack),
                )
                clone = await self._launcher.launch(QemuClone, spec, files, stack)
            clone.reads(script)
            yield clone

    def forget(self, folder: Path) -> None:
        """Let go of what is kept in memory of a snapshot; its clones go on."""
        frozen = self._frozen.pop(folder, None)
        if frozen is not None:
            frozen.close()

    async def _frozen_in(self, folder: Path) -> Frozen:
        """What is kept in memory of a snapshot, loaded by the first who asks. Raises BadSnapshot, HostError."""
        if folder not in self._frozen:
            async with self._loading:
                if folder not in self._frozen:
                    self._frozen[folder] = await uninterrupted(_load(folder), Frozen.close)
        return self._frozen[folder]

    async def _opened(self, path: Path, stack: AsyncExitStack) -> int:
        """A descriptor to read from, closed with `held`. Raises HostError."""
        try:
            descriptor = await uninterrupted(in_thread(self._read_only.open, path), os.close)
        except OSError as error:
            if error.errno in HOST_ERRNOS:
                raise
            reason = error.strerror or error
            raise HostError(f"cannot read {path}: {reason}; build the image or upload the script again") from error
        stack.callback(os.close, descriptor)
        return descriptor

    @property
    def _disks(self) -> Path:
        return self._settings.paths.scratch

    async def _scratch(self, spec: MachineSpec, stack: AsyncExitStack) -> int | None:
        return await stack.enter_async_context(scratch_disk(self._disks, spec.shape.disk_mb))

    def _empty_disk(self, size_bytes: int, stack: AsyncExitStack) -> int:
        """A sparse file without a name, gone with its last descriptor. Raises DiskFull, HostError."""
        with host_errors("make a machine's disk"):
            self._disks.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = tempfile.TemporaryFile(dir=self._disks)  # noqa: SIM115 (held)
            stack.callback(file.close)
            file.truncate(size_bytes)
            return file.fileno()


async def _load(folder: Path) -> Frozen:
    try:
        return await in_thread(Frozen.load, folder)
    except OSError as error:
        if error.errno in HOST_ERRNOS:
            raise host_error(error, "load a snapshot") from error
        raise BadSnapshot(f"the snapshot in {folder} cannot be read: {error.strerror}") from error


@functools.cache
def _command_digest() -> str:
    """Changes with the code that decides what a machine is made of: a snapshot fits only the same."""
    return hashlib.sha256(Path(command.__file__).read_bytes()).hexdigest()[:16]


@functools.cache
def qemu_version(executable: Path) -> str:
    """What `--version` says, such as 7.2.22. Raises HostError when the program cannot be run."""
    try:
        words = subprocess.run([executable, "--version"], capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise HostError(f"{executable} --version failed: {error}") from error
    found = re.search(r"version (\d[\w.]*)", words)
    return found[1] if found else "unknown"
