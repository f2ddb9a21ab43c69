"""Starts QEMU machines: booted, booted as the source of a snapshot, or cloned from a snapshot."""

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
from belljar.node.frozen.protocol import FrozenParts
from belljar.node.machines.deadlines import deadline_factor
from belljar.node.machines.disks import ScriptDisk, copy_sparse
from belljar.node.machines.host.cgroup import find_hierarchies
from belljar.node.machines.host.host_errors import HOST_ERRNOS
from belljar.node.machines.host.jail import Program, find_program
from belljar.node.machines.host.owner import owner_name
from belljar.node.machines.host.readonly import ReadOnlyFiles
from belljar.node.machines.host.shielded_stack import shielded_exit_stack, uninterrupted
from belljar.node.machines.host.tap import enter_isolated_tap, enter_tap
from belljar.node.machines.host.threads import in_thread
from belljar.node.machines.protocol import (
    SCRIPT_DISK_BYTES,
    BadSnapshot,
    Clone,
    Machine,
    MachineSpec,
    SnapshotSource,
    WaitingProcess,
)
from belljar.node.machines.qemu import command
from belljar.node.machines.qemu.clone import QemuClone
from belljar.node.machines.qemu.launch import Launcher, MachineFiles
from belljar.node.machines.qemu.machine import QemuMachine, QemuSnapshotSource
from belljar.node.machines.qemu.memory import new_memory, reopen_read_only
from belljar.node.machines.qemu.restoring import Restoring
from belljar.node.machines.qemu.scratch import scratch_disk
from belljar.node.machines.qemu.snapshot_files import SCRATCH, LoadedSnapshot
from belljar.settings import Settings
from belljar.system.host_errors import host_errors

#: Where QEMU finds accelerators that are modules, and firmware; it opens them by name.
_FOLDERS = (
    "/usr/lib/x86_64-linux-gnu/qemu",
    "/usr/lib64/qemu",
    "/usr/lib/qemu",
    "/usr/share/qemu",
    "/usr/share/seabios",
)
#: QEMU answers its monitor within a tenth of a second after its start; on a busy host later.
_PREPARE_SECONDS = 30.0
#: A process that waited answers within a few milliseconds; after this time a new one is quicker.
_TAKE_OVER_SECONDS = 1.0


class QemuHypervisor:
    """The protocol's Hypervisor over QEMU's microvm. Its constructor raises MissingTool without QEMU."""

    name = "qemu"

    def __init__(self, settings: Settings, accelerator: str) -> None:
        self.accelerator = accelerator
        self._settings = settings
        self._deadline_factor = deadline_factor(settings.boot_timeout_seconds)
        self._program: Program = find_program(settings.qemu, *_FOLDERS)
        self._launcher = Launcher(
            settings=settings,
            program=self._program,
            accelerator=accelerator,
            hierarchies=tuple(find_hierarchies()),
            owner=owner_name(os.getpid()),
        )
        self._loaded: dict[Path, LoadedSnapshot] = {}
        self._loading = asyncio.Lock()
        self._restoring = Restoring()
        self._read_only = ReadOnlyFiles(settings.data_dir)

    @property
    def version(self) -> str:
        """Return QEMU's version, such as 7.2.22."""
        return qemu_version(self._program.executable)

    @property
    def identity(self) -> str:
        """Return the identity of the executable file, which is quicker than its version, and of the calling code."""
        status = self._program.executable.stat()
        return f"{self._program.executable}:{status.st_size}:{status.st_mtime_ns}:{_command_digest()}"

    @asynccontextmanager
    async def machine(self, spec: MachineSpec) -> AsyncIterator[Machine]:
        """Start a machine; it is booting when the block begins. Raises MissingTool, HostError, DiskFull."""
        if spec.script_disk is None:
            raise ValueError("a machine that boots needs its script disk at once")
        async with shielded_exit_stack() as stack:
            with host_errors("start a machine"):
                files = MachineFiles(
                    kernel=await self._open(spec.image.kernel, stack),
                    initramfs=await self._open(spec.image.initramfs, stack),
                    root=await self._open(spec.image.root, stack),
                    script=await self._open(spec.script_disk, stack),
                    scratch=await self._scratch(spec, stack),
                    memory=self._own_memory(spec, stack),
                    tap=await enter_tap(spec.slot, stack),
                )
                machine = await self._launcher.launch(QemuMachine, spec, files, stack)
            yield machine

    @asynccontextmanager
    async def snapshot_source(self, spec: MachineSpec, folder: Path) -> AsyncIterator[SnapshotSource]:
        """Boot a machine that can be frozen into `folder`. Raises MissingTool, HostError, DiskFull."""
        async with shielded_exit_stack() as stack:
            with host_errors("start a machine"):
                memory = new_memory(spec.shape.memory_mb << 20)
                stack.callback(os.close, memory)
                script = self._empty_disk(SCRIPT_DISK_BYTES, stack)
                scratch = await self._scratch(spec, stack)
                files = MachineFiles(
                    kernel=await self._open(spec.image.kernel, stack),
                    initramfs=await self._open(spec.image.initramfs, stack),
                    root=await self._open(spec.image.root, stack),
                    script=reopen_read_only(script, stack),
                    scratch=scratch,
                    memory=memory,
                    tap=await enter_isolated_tap(stack) if spec.shape.network else None,
                )
                source = await self._launcher.launch(
                    lambda spawned: QemuSnapshotSource(spawned, ScriptDisk(script), folder, memory, scratch),
                    spec,
                    files,
                    stack,
                )
            yield source

    @asynccontextmanager
    async def waiting_process(self, spec: MachineSpec, folder: Path) -> AsyncIterator[WaitingProcess]:
        """Start a process that waits to become a clone. Raises MachineError, HostError, DiskFull."""
        async with shielded_exit_stack() as stack:
            with host_errors("start a process that waits"):
                process = await self._spawn_clone(spec, folder, await enter_tap(spec.slot, stack), stack)
                await process.prepare(_PREPARE_SECONDS * self._deadline_factor)
            yield process

    @asynccontextmanager
    async def clone(
        self, spec: MachineSpec, folder: Path, process: WaitingProcess | None = None
    ) -> AsyncIterator[Clone]:
        """Clone the snapshot in `folder`; its memory is loaded once. Raises MachineError, HostError, DiskFull."""
        async with shielded_exit_stack() as stack:
            clone = None if process is None else await self._take_over(process, spec, stack)
            if clone is None:
                with host_errors("clone a machine"):
                    # The device of a process that failed is still attached to its descriptor.
                    failed = process.tap if isinstance(process, QemuClone) else None
                    tap = await enter_tap(spec.slot, stack) if failed is None else failed
                    clone = await self._spawn_clone(spec, folder, tap, stack)
                    clone.load_snapshot()
            yield clone

    async def _take_over(self, process: WaitingProcess, spec: MachineSpec, stack: AsyncExitStack) -> QemuClone | None:
        """Return a process that waited as a running clone, which is killed with `stack`; None when it does not work."""
        assert isinstance(process, QemuClone)
        stack.push_async_callback(process.kill)
        if not await process.take_over(_TAKE_OVER_SECONDS * self._deadline_factor):
            await process.kill()
            return None
        if not spec.background:
            process.set_foreground()
        return process

    @asynccontextmanager
    async def restored(self, spec: MachineSpec, parts: FrozenParts) -> AsyncIterator[Clone]:
        """Restore a frozen machine. Raises SnapshotUnusable, MachineError, HostError, DiskFull."""
        async with shielded_exit_stack() as stack:
            with host_errors("resume a machine"):
                loaded = await stack.enter_async_context(self._restoring.loaded(parts))
                tap = await enter_tap(spec.slot, stack)
                scratch = await self._restored_scratch(spec, parts, stack)
                clone = await self._spawn_from(
                    loaded, scratch, spec, tap, stack, bare_state=True, owns_memory=not parts.is_shared
                )
                clone.load_snapshot()
            yield clone

    async def _restored_scratch(self, spec: MachineSpec, parts: FrozenParts, stack: AsyncExitStack) -> int | None:
        if spec.shape.disk_mb is None:
            return None
        scratch = self._empty_disk(0, stack)
        await uninterrupted(in_thread(parts.copy, SCRATCH, scratch))
        return scratch

    async def _spawn_clone(self, spec: MachineSpec, folder: Path, tap: int | None, stack: AsyncExitStack) -> QemuClone:
        """Return a new process with the snapshot's memory and with disks of its own, which ends with `stack`."""
        snapshot = await self._load(folder)
        scratch = await self._copy_scratch(snapshot.scratch, stack)
        return await self._spawn_from(snapshot, scratch, spec, tap, stack)

    async def _spawn_from(
        self,
        loaded: LoadedSnapshot,
        scratch: int | None,
        spec: MachineSpec,
        tap: int | None,
        stack: AsyncExitStack,
        *,
        bare_state: bool = False,
        owns_memory: bool = False,
    ) -> QemuClone:
        snapshot = loaded.duplicate(stack)
        script = self._empty_disk(SCRIPT_DISK_BYTES, stack)
        state = reopen_read_only(snapshot.state, stack)
        files = MachineFiles(
            root=await self._open(spec.image.root, stack),
            script=reopen_read_only(script, stack),  # the guest may not write to it
            scratch=scratch,
            memory=snapshot.memory,
            state=state,
            bare_state=bare_state,
            owns_memory=owns_memory,
            tap=tap,
        )
        return await self._launcher.launch(
            lambda spawned: QemuClone(spawned, ScriptDisk(script), state, tap), spec, files, stack
        )

    def release_snapshot(self, folder: Path) -> None:
        """Release the memory of a loaded snapshot; running clones keep theirs."""
        snapshot = self._loaded.pop(folder, None)
        if snapshot is not None:
            snapshot.close()

    async def _load(self, folder: Path) -> LoadedSnapshot:
        """Return the snapshot in memory; the first call for a folder loads it. Raises BadSnapshot, HostError."""
        if folder not in self._loaded:
            async with self._loading:
                if folder not in self._loaded:
                    self._loaded[folder] = await uninterrupted(_load_snapshot(folder), LoadedSnapshot.close)
        return self._loaded[folder]

    async def _open(self, path: Path, stack: AsyncExitStack) -> int:
        """Return a descriptor to read from, closed with `stack`. Raises HostError."""
        try:
            descriptor = await uninterrupted(in_thread(self._read_only.open, path), os.close)
        except OSError as error:
            if error.errno in HOST_ERRNOS:
                raise
            reason = error.strerror or error
            raise HostError(f"cannot read {path}: {reason}; build the image or upload the script again") from error
        stack.callback(os.close, descriptor)
        return descriptor

    def _own_memory(self, spec: MachineSpec, stack: AsyncExitStack) -> int | None:
        """Return memory in a file for a machine that may be frozen; None: QEMU takes memory of its own."""
        if not spec.freezable:
            return None
        memory = new_memory(spec.shape.memory_mb << 20)
        stack.callback(os.close, memory)
        return memory

    @property
    def _disks(self) -> Path:
        return self._settings.paths.scratch

    async def _scratch(self, spec: MachineSpec, stack: AsyncExitStack) -> int | None:
        return await stack.enter_async_context(scratch_disk(self._disks, spec.shape.disk_mb))

    async def _copy_scratch(self, source: int | None, stack: AsyncExitStack) -> int | None:
        if source is None:
            return None
        scratch = self._empty_disk(0, stack)
        await uninterrupted(in_thread(copy_sparse, source, scratch))
        return scratch

    def _empty_disk(self, size_bytes: int, stack: AsyncExitStack) -> int:
        """Return a sparse file without a name, closed with `stack`. Raises DiskFull, HostError."""
        with host_errors(f"make a machine's disk in {self._disks}"):
            self._disks.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = tempfile.TemporaryFile(dir=self._disks)  # noqa: SIM115 (the stack closes it)
            stack.callback(file.close)
            file.truncate(size_bytes)
            return file.fileno()


async def _load_snapshot(folder: Path) -> LoadedSnapshot:
    try:
        return await in_thread(LoadedSnapshot.load, folder)
    except OSError as error:
        if error.errno in HOST_ERRNOS:
            raise host_error(error, "load a snapshot") from error
        raise BadSnapshot(f"the snapshot in {folder} cannot be read: {error.strerror}") from error


@functools.cache
def _command_digest() -> str:
    """Return a digest of the code that decides a machine's hardware: a snapshot fits only the same hardware."""
    return hashlib.sha256(Path(command.__file__).read_bytes()).hexdigest()[:16]


@functools.cache
def qemu_version(executable: Path) -> str:
    """Return the version that `--version` prints, such as 7.2.22. Raises HostError when the program cannot be run."""
    try:
        run = subprocess.run([executable, "--version"], capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        raise HostError(f"{executable} --version failed: {error}") from error
    match = re.search(r"version (\d[\w.]*)", run.stdout)
    return match[1] if match else "unknown"
