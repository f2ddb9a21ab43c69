"""Starts Firecracker machines: booted, booted as the source of a snapshot, or cloned from a snapshot.

A start is a list of timed steps. A boot makes no request: Firecracker reads the whole machine from a file, and opens no
API socket. A clone makes one request, a snapshot source none before it is frozen.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from belljar.model.errors import HostError
from belljar.node.frozen.protocol import FrozenParts
from belljar.node.machines.deadlines import deadline_factor
from belljar.node.machines.disks import ScriptDisk, copy_sparse_file
from belljar.node.machines.firecracker.clone import FirecrackerClone, load_request, restore_request
from belljar.node.machines.firecracker.configuration import FORMAT
from belljar.node.machines.firecracker.folder import API, MEMORY, ROOT, SCRATCH, SCRIPT, STATE, machine_folder
from belljar.node.machines.firecracker.machine import FirecrackerMachine
from belljar.node.machines.firecracker.program import Programs, find_programs
from belljar.node.machines.firecracker.snapshot_source import FirecrackerSnapshotSource
from belljar.node.machines.firecracker.start import Start, bounds
from belljar.node.machines.host.cgroup import find_hierarchies, machine_group
from belljar.node.machines.host.jail import machine_uid
from belljar.node.machines.host.owner import owner_name
from belljar.node.machines.host.shielded_stack import shielded_exit_stack, uninterrupted
from belljar.node.machines.host.tap import enter_isolated_slot
from belljar.node.machines.host.threads import in_thread
from belljar.node.machines.protocol import Clone, Machine, MachineSpec, SnapshotSource, WaitingProcess
from belljar.node.machines.timings import StepTimings
from belljar.settings import Settings
from belljar.system.host_errors import host_errors

#: A clone's agent listens already; the time is for a host under load.
_CONNECT_SECONDS = 10.0
#: A process that waited answers within milliseconds; after this time a new one is quicker. The API client scales it.
_TAKE_OVER_SECONDS = 1.0
_START = "start a machine"
_NO_NETWORK = "a machine with a network needs Firecracker's jailer: run belljar as root"


class FirecrackerHypervisor:
    """The protocol's Hypervisor. Its constructor raises MissingTool or HostError where Firecracker cannot run."""

    name = "firecracker"
    accelerator = "kvm"

    def __init__(self, settings: Settings, *, jailed: bool | None = None) -> None:
        """`jailed`: whether to use Firecracker's jailer; by default if belljar is root, which the jailer needs."""
        self._jailed = os.geteuid() == 0 if jailed is None else jailed
        self._settings = settings
        self._deadline_factor = deadline_factor(settings.boot_timeout_seconds)
        self._programs: Programs = find_programs(settings, jailed=self._jailed)
        self._hierarchies = find_hierarchies()
        self._owner = owner_name(os.getpid())

    @property
    def version(self) -> str:
        """Return Firecracker's version, such as 1.16.1."""
        return self._programs.version

    @property
    def identity(self) -> str:
        """Return a string that changes whenever older snapshots become unusable."""
        return f"{self._programs.identity}:{FORMAT}"

    @asynccontextmanager
    async def machine(self, spec: MachineSpec) -> AsyncIterator[Machine]:
        """Start a machine; it is booting when the block begins. Raises MissingTool, HostError, DiskFull."""
        if spec.script_disk is None:
            raise ValueError("a machine that boots needs its script disk at once")
        async with self._start(spec) as start:
            with host_errors(_START):
                start.folder.show(SCRIPT, spec.script_disk)
                await start.configure(*(("--api-sock", API) if spec.freezable else ("--no-api",)))
                machine = await start.spawn(FirecrackerMachine)
                machine.connect_in_background()
            yield machine

    @asynccontextmanager
    async def snapshot_source(self, spec: MachineSpec, folder: Path) -> AsyncIterator[SnapshotSource]:
        """Boot a machine that can be frozen into `folder`. Raises MissingTool, HostError, DiskFull."""
        async with AsyncExitStack() as stack, self._start(await self._with_isolated_slot(spec, stack)) as start:
            with host_errors(_START):
                script_disk = start.make_script_disk()
                await start.configure("--api-sock", API)
                start.file_mb += spec.shape.memory_mb
                source = await start.spawn(
                    lambda spawned: FirecrackerSnapshotSource(spawned, script_disk, folder, start.spec)
                )
                source.connect_in_background()
            yield source

    @asynccontextmanager
    async def waiting_process(self, spec: MachineSpec, folder: Path) -> AsyncIterator[WaitingProcess]:
        """Start a process whose API waits for the request to load. Raises as `clone` does."""
        async with self._start(spec) as start:
            with host_errors("start a process that waits"):
                process = await self._spawn_clone(start, folder)
                await process.open_api()
                process.phases.clear()  # nobody waited for them
            yield process

    @asynccontextmanager
    async def clone(
        self, spec: MachineSpec, folder: Path, process: WaitingProcess | None = None
    ) -> AsyncIterator[Clone]:
        """Clone the snapshot in `folder`. Raises MissingTool, HostError, DiskFull, MachineError."""
        async with shielded_exit_stack() as stack:
            clone = None if process is None else await self._take_over(process, spec, stack)
            if clone is None:
                start = await stack.enter_async_context(self._start(spec))
                with host_errors("clone a machine"):
                    clone = await self._spawn_clone(start, folder)
                    await clone.open_api()
                    await clone.load_snapshot()
            await clone.connect(_CONNECT_SECONDS * self._deadline_factor)
            yield clone

    @asynccontextmanager
    async def restored(self, spec: MachineSpec, parts: FrozenParts) -> AsyncIterator[Clone]:
        """Restore a frozen machine. Raises SnapshotUnusable, MissingTool, HostError, DiskFull, MachineError."""
        async with self._start(spec) as start:
            with host_errors("resume a machine"):
                script_disk = await self._restore_files(start, parts)
                request = restore_request(start.spec)
                clone = await start.spawn(lambda spawned: FirecrackerClone(spawned, script_disk, request))
                await clone.open_api()
                await clone.load_snapshot()
            await clone.connect(_CONNECT_SECONDS * self._deadline_factor)
            yield clone

    async def _restore_files(self, start: Start, parts: FrozenParts) -> ScriptDisk:
        """Give the process the parts as files of its own; return its script disk."""
        modes = {STATE: 0o400, MEMORY: 0o400}
        if start.spec.shape.disk_mb is not None:
            modes[SCRATCH] = 0o600
        for name, mode in modes.items():
            with start.folder.created(name) as descriptor:
                await uninterrupted(in_thread(parts.copy, name, descriptor))
            start.folder.give(name, mode)
        start.arguments = ("--api-sock", API)
        return start.make_script_disk()

    async def _take_over(
        self, process: WaitingProcess, spec: MachineSpec, stack: AsyncExitStack
    ) -> FirecrackerClone | None:
        """Return a process that waited with the snapshot loaded, which is killed with `stack`; None if it fails."""
        assert isinstance(process, FirecrackerClone)
        stack.push_async_callback(process.kill)
        if not await process.take_over(_TAKE_OVER_SECONDS):
            await process.kill()
            return None
        if not spec.background:
            process.set_foreground()
        return process

    async def _spawn_clone(self, start: Start, folder: Path) -> FirecrackerClone:
        """Return a new process that sees the snapshot, and has the request with which it will load it."""
        request = load_request(folder, start.spec)
        script_disk = await self._show_snapshot(start, folder)
        return await start.spawn(lambda spawned: FirecrackerClone(spawned, script_disk, request))

    async def _show_snapshot(self, start: Start, folder: Path) -> ScriptDisk:
        """Show the process the snapshot's files, and give it disks of its own; return its script disk."""
        start.folder.show(STATE, folder / STATE)
        start.folder.show(MEMORY, folder / MEMORY)
        script_disk = start.make_script_disk()
        if start.spec.shape.disk_mb is not None:
            await uninterrupted(in_thread(copy_sparse_file, folder / SCRATCH, start.folder.path / SCRATCH))
            start.folder.give(SCRATCH, 0o600)
        start.arguments = ("--api-sock", API)
        return script_disk

    async def _with_isolated_slot(self, spec: MachineSpec, stack: AsyncExitStack) -> MachineSpec:
        """Give a snapshot source with a network an isolated device; each clone gets the device of its own slot."""
        if not spec.shape.network or spec.slot is not None:
            return spec
        if not self._jailed:
            raise HostError(_NO_NETWORK)
        return replace(spec, slot=await enter_isolated_slot(stack))

    def release_snapshot(self, folder: Path) -> None:
        """Do nothing: this driver keeps no part of a snapshot outside its folder."""

    @asynccontextmanager
    async def _start(self, spec: MachineSpec) -> AsyncIterator[Start]:
        """Make everything around a process, and remove it after the process."""
        async with shielded_exit_stack() as stack:
            with host_errors(_START):
                start = await self._prepare(spec, stack)
            yield start

    async def _prepare(self, spec: MachineSpec, stack: AsyncExitStack) -> Start:
        if spec.slot is not None and not self._jailed:
            raise HostError(_NO_NETWORK)
        token, timings = secrets.token_hex(6), StepTimings()
        uid = stack.enter_context(machine_uid(self._settings)) if self._jailed else None
        group = await stack.enter_async_context(
            machine_group(self._hierarchies, f"{self._owner}.{token}", bounds(spec))
        )
        # The jailer accepts letters, digits and dashes; the part after the last dash is the token.
        jail_id = f"{self._owner}-{token}"
        folder = await stack.enter_async_context(
            machine_folder(self._settings.paths.jails, self._programs.firecracker.name, jail_id, uid)
        )
        folder.show(ROOT, spec.image.root)
        return Start(
            settings=self._settings,
            programs=self._programs,
            spec=spec,
            stack=stack,
            folder=folder,
            group=group,
            machine_id=f"{self._owner}.{token}",
            jail_id=jail_id,
            timings=timings,
        )
